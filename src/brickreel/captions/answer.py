"""What a captioner answers: the fields, the outcomes, and the JSON schema that an endpoint is held to."""

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

Verdict = Literal["described", "not enough information", "single image", "no movement"]
VERDICTS: dict[str, tuple[str, ...]] = {"clip": get_args(Verdict), "still": ("described", "not enough information")}
"""The outcomes that each kind of item may have."""


class Answer(BaseModel):
    """One structured answer."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    outcome: Verdict
    caption: str
    subjects: str
    action: str
    camera: str
    setting: str
    style: str
    confidence: float = Field(ge=0, le=1)


def response_format(kind: str) -> dict[str, Any]:
    """The `response_format` of a chat request: a strict JSON schema, in the subset that every server knows."""
    text = {"type": "string"}
    properties: dict[str, Any] = dict.fromkeys(Answer.model_fields, text)
    properties["outcome"] = {"type": "string", "enum": list(VERDICTS[kind])}
    properties["confidence"] = {"type": "number"}
    return {
        "type": "json_schema",
        "json_schema": {
            "name": "caption",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            },
        },
    }
