// Enhancement only: the page is complete without it. Sorts tables by a clicked column; reads and zooms charts.
document.querySelectorAll("table[data-sortable]").forEach((table) => {
  const body = table.tBodies[0];
  table.tHead.querySelectorAll("th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      table.tHead.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (row) => {
        const text = row.cells[column].textContent.trim();
        const number = parseFloat(text.replace(/,/g, ""));
        return Number.isNaN(number) ? text : number;
      };
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        if (typeof x === typeof y) return x < y ? -1 : x > y ? 1 : 0;
        return typeof x === "number" ? -1 : 1;
      });
      body.append(...(up ? rows : rows.reverse()));
    });
  });
});

// A chart: point at it to read values, drag to zoom, double-click or Escape for the whole. Keys: arrows, +, -.
const SVG = "http://www.w3.org/2000/svg";
const short = (value) => Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });

function niceTicks(low, high, wanted) {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + 1e-9 * step; tick += step) ticks.push(tick);
  return ticks;
}

document.querySelectorAll(".figure[data-chart]").forEach((figure) => {
  const data = JSON.parse(figure.dataset.chart);
  const picture = figure.querySelector("svg.chart");
  const plot = picture.querySelector("svg.plot");
  if (data.at.length < 2) return;
  const [left, top, wide, tall] = ["x", "y", "width", "height"].map((name) => Number(plot.getAttribute(name)));
  const [first, last] = data.x;
  let view = [first, last];
  let chosen = null;
  let dragged = null;

  const make = (name, attributes, parent) => {
    const made = document.createElementNS(SVG, name);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    parent.append(made);
    return made;
  };
  const cross = make("line", { class: "cross", y1: top, y2: top + tall, visibility: "hidden" }, picture);
  const brush = make("rect", { class: "brush", y: top, height: tall, visibility: "hidden" }, picture);
  const readout = document.createElement("div");
  readout.className = "readout";
  readout.setAttribute("aria-live", "polite");
  figure.append(readout);
  figure.tabIndex = 0;
  figure.setAttribute("role", "group");
  figure.setAttribute("aria-label", "Chart. Arrow keys read values, plus and minus zoom, Escape shows all of it.");

  const toX = (place) => view[0] + ((place - left) / wide) * (view[1] - view[0]);
  const toPlace = (x) => left + (wide * (x - view[0])) / (view[1] - view[0]);
  const pointed = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(picture.getScreenCTM().inverse());
    return Math.min(Math.max(point.x, left), left + wide);
  };

  function read(index) {
    chosen = index;
    const x = data.at[index];
    cross.setAttribute("x1", toPlace(x));
    cross.setAttribute("x2", toPlace(x));
    cross.setAttribute("visibility", "visible");
    const values = data.lines.map(([name, y]) => `${name}: ${y[index] === null ? "not measured" : short(y[index])}`);
    readout.textContent = `${data.unit} ${short(x)} · ${values.join(" · ")}`;
  }

  function show(low, high) {
    view = [Math.max(low, first), Math.min(high, last)];
    const scale = wide / (last - first);
    const box = [left + (view[0] - first) * scale, top, (view[1] - view[0]) * scale, tall];
    plot.setAttribute("viewBox", box.join(" "));
    picture.querySelectorAll(".xtick").forEach((tick) => tick.remove());
    niceTicks(view[0], view[1], 7).forEach((tick) => {
      const place = { class: "tick xtick", x: toPlace(tick), y: top + tall + 22, "text-anchor": "middle" };
      make("text", place, picture.querySelector(".axis")).textContent = short(tick);
    });
    if (chosen !== null) read(chosen);
  }

  const nearest = (x) =>
    data.at.reduce((best, at, index) => (Math.abs(at - x) < Math.abs(data.at[best] - x) ? index : best), 0);

  picture.addEventListener("pointerdown", (event) => { if (event.button === 0) dragged = pointed(event); });
  picture.addEventListener("pointermove", (event) => {
    const place = pointed(event);
    read(nearest(toX(place)));
    if (dragged !== null && Math.abs(place - dragged) > 8) {
      brush.setAttribute("x", Math.min(place, dragged));
      brush.setAttribute("width", Math.abs(place - dragged));
      brush.setAttribute("visibility", "visible");
    }
  });
  window.addEventListener("pointerup", (event) => {
    if (dragged === null) return;
    const [from, to] = [dragged, pointed(event)].sort((a, b) => a - b);
    dragged = null;
    brush.setAttribute("visibility", "hidden");
    if (to - from > 8) show(toX(from), toX(to));
  });
  picture.addEventListener("pointerleave", () => {
    cross.setAttribute("visibility", "hidden");
    readout.textContent = "";
  });
  picture.addEventListener("dblclick", () => show(first, last));
  figure.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const middle = chosen === null ? (view[0] + view[1]) / 2 : data.at[chosen];
    const half = (view[1] - view[0]) / 2;
    if (move) read(Math.min(Math.max((chosen ?? nearest(middle)) + move, 0), data.at.length - 1));
    else if (event.key === "+") show(middle - half / 2, middle + half / 2);
    else if (event.key === "-") show(middle - half * 2, middle + half * 2);
    else if (event.key === "Escape") show(first, last);
    else return;
    event.preventDefault();
  });
});
