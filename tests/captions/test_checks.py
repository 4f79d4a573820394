import pytest

from brickreel.captions import checks
from brickreel.config import Caption

GOOD = "A red figure with a white hat walks over the green baseplate to the house on the left."
SETTINGS = Caption()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD, ""),
        ("", "no caption: empty text"),
        ("  \n", "no caption: empty text"),
        ("Caption failed", "no caption: 'caption failed'"),
        ("Not enough information.", "no caption: 'not enough information'"),
        ("I'm sorry, but I can't help with that request in this place.", "refusal in the text"),
        ("As an AI I do not see the pictures of a house.", "refusal in the text"),
        ("A red car.", "too short: 3 words, at least 5 are needed"),
        ("the house is " * 60, "too long: 180 words, at most 160 are allowed"),
        ("Eine rote Figur geht langsam zum grünen Haus hinüber und winkt.", "not English"),
        ("Красная фигура идёт по зелёной поверхности к дому in the end of it.", "not English"),
        ("一个红色的人物在绿色的底板上行走 走 走 走 走", "not English"),
        ("I’m sorry, but I can’t do that for this scene.", "refusal in the text"),
        ("I am not able to describe what the figure does.", "refusal in the text"),
        ("There is not enough information to describe the scene.", "refusal in the text"),
        ("In the first picture a figure stands at the house.", "speaks of the pictures: 'first picture'"),
        ("A red figure is in the street in all pictures.", "speaks of the pictures: 'all pictures'"),
        ("There is not enough context to say what the figure does.", "refusal in the text"),
        ("A figure stands at the wall with insufficient detail on the face.", ""),
        ("A red figure looks at the last picture on the wall and this picture hangs left.", ""),
        ("A red figure reads in the picture book while all pictures fall to the ground.", ""),
        ("A red figure hangs a picture on the wall of the house.", ""),
        ("Red figure walks left past tall blue house, green tree", ""),
        ("A red van drives past a house in La Paz.", ""),
        ("Een man in een rode jas is op de straat en kijkt over het water.", "not English"),
        ("Una figura roja camina a la izquierda sobre la base verde.", "not English"),
        ("Una figura rossa cammina a sinistra in una strada con un tetto verde.", "not English"),
        ("Une figurine rouge marche vers la gauche dans la rue.", "not English"),
        ("Ein Mann in rotem Hemd is in der Stadt.", "not English"),
        ("The red red red red figure walks to the house.", "repeats itself"),
        ("A car drives. It is red. It is red. It is red.", "repeats itself"),
        ("The figure walks to the left and " * 8 + "stops.", "repeats itself"),
    ],
)
def test_text_is_judged_with_a_reason(text, reason):
    assert checks.text_problem(text, SETTINGS) == reason


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("This stop-motion scene shows a video.", "stop-motion, video"),
        ("This stop motion scene of a LEGO man.", "lego, stop motion"),
        ("Two stopmotion frames in one video's images.", "frames, images, stopmotion, video's"),
        ("A K’nex tower and its minifigures.", "k'nex, minifigures"),
        ("A stop‑motion scene and a stop–motion house.", "stop-motion"),
        ("A photo, two films, a movie, a clip, claymation.", "claymation, clip, films, movie, photo"),
        ("A window frame, two door-frames, a picture frame, a bed frame and a paper clip.", ""),
        ("A tree frames the house, and the frame of the doorway is red.", ""),
        ("A bicycle with a red frame stands at a frame-like tower and a door with white frames.", ""),
        ("In both frames the figure stands.", "frames"),
        ("The frame of the figure.", "frame"),
        ("A frame around the window.", "frame"),
        ("He framed the videography of a legoland.", ""),
        ("A frameless window is on a windowframe.", ""),
    ],
)
def test_banned_words_are_found_in_all_their_forms_and_only_as_words(text, found):
    reason = checks.banned(text, SETTINGS.banned_words)
    assert reason == (f"banned words: {found}" if found else "")


def test_no_banned_words_ban_nothing():
    assert checks.banned("A video of a frame.", ()) == ""


def test_names_with_a_few_accents_are_english():
    assert checks.text_problem("Zoë and André walk with a café owner to the house on the hill.", SETTINGS) == ""


def test_banned_word_may_end_in_a_sign():
    assert checks.banned("A tower of LEGO® stands there.", ("LEGO®",)) == "banned words: lego®"
    assert checks.banned("A tower of C++ parts.", ("C++",)) == "banned words: c++"
    assert checks.banned("A tower of LEGO stands there.", ("LEGO®",)) == ""
