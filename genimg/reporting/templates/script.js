"use strict";
// The page is complete without this script, which adds sorting, sliders for samples and interactive charts.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const XML = Object.assign(document.createElement("div"), { innerHTML: "<svg></svg>" }).firstChild.namespaceURI;
  const svg = (name, attributes, text) => {
    const element = document.createElementNS(XML, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const html = (name, className, text) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const plain = (number, digits = 4) => {
    if (number === 0) return "0";
    const size = Math.abs(number);
    return size >= 1e-4 && size < 1e6 ? String(Number(number.toPrecision(digits))) : number.toExponential(digits - 2).replace("e+", "e");
  };
  const short = (images) => {
    for (const [size, unit] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) if (Math.abs(images) >= size) return Number((images / size).toPrecision(4)) + unit;
    return String(Number(images.toPrecision(4)));
  };
  const spoken = (images) => images.toLocaleString("en-US");

  const CONSTANT = 1e-6, ZERO = 1e-300; // relative spread and size up to which numbers count as equal and as zero, as in curves.py
  const niceTicks = (low, high, count) => {
    const most = Math.max(Math.abs(low), Math.abs(high));
    if (high - low <= Math.max(CONSTANT * most, ZERO)) [low, high] = most > ZERO ? [Math.min(0, 2 * low), Math.max(0, 2 * high)] : [0, 1];
    const rough = (high - low) / Math.max(count - 1, 1), size = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].find((factor) => factor * size >= rough * 0.999) * size;
    const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
    return Array.from({ length: last - first + 1 }, (_, place) => (first + place) * step);
  };
  const logTicks = (low, high, count) => {
    const first = Math.floor(Math.log10(low) + 1e-9), last = Math.max(Math.ceil(Math.log10(high) - 1e-9), first + 1);
    const factors = (last - first) * 3 <= count * 1.5 ? [1, 2, 5] : [1], step = Math.max(1, Math.ceil((last - first) / count)), found = [];
    for (let power = first; power < last; power += step) for (const factor of factors) found.push(factor * 10 ** power);
    found.push(10 ** last);
    const start = Math.max(...found.filter((tick) => tick <= low * 1.0001)), end = Math.min(...found.filter((tick) => tick >= high * 0.9999));
    const inside = found.filter((tick) => tick >= start && tick <= end);
    return inside.length > 1 ? inside : [start, start * 10];
  };
  const tickDigits = (ticks) => Math.max(4, 2 + Math.ceil(Math.log10(Math.max(...ticks.map(Math.abs)) / (ticks[1] - ticks[0]))));
  const spansADecade = (values) => Math.min(...values) > 0 && Math.max(...values) >= 9.999 * Math.min(...values);

  // Titles are aligned like their columns.
  for (const table of all("table")) all("thead th", table).forEach((header, column) => { header.classList.toggle("number", !!table.tBodies[0].rows[0] && table.tBodies[0].rows[0].cells[column].matches(".number")); });

  // Sortable tables: missing values are last in both directions, equal ones keep their order.
  for (const table of all("table.sortable")) {
    const headers = all("thead th", table), body = table.tBodies[0], original = [...body.rows];
    headers.forEach((header, column) => header.querySelector("button").addEventListener("click", () => {
      const up = header.getAttribute("aria-sort") !== "ascending";
      for (const each of headers) each.setAttribute("aria-sort", each === header ? (up ? "ascending" : "descending") : "none");
      const keyed = original.map((row) => [row.cells[column].dataset.value, row]);
      const known = keyed.filter(([value]) => value !== undefined && value !== "");
      const numeric = known.every(([value]) => !Number.isNaN(Number(value)));
      const compare = numeric ? (a, b) => a - b : (a, b) => a.localeCompare(b, "en", { numeric: true });
      known.sort(([a], [b]) => (up ? compare(a, b) : compare(b, a)));
      body.append(...known.map(([, row]) => row), ...keyed.filter(([value]) => value === undefined || value === "").map(([, row]) => row));
    }));
  }

  // Samples: the latest picture of each run at the slider's time.
  for (const kind of all(".kind")) {
    const slider = kind.querySelector("input[type=range]"), output = kind.querySelector("output");
    const viewers = all("figure", kind).map((figure) => {
      const ends = all("img", figure), more = figure.querySelector("script.between");
      const pictures = ends.map((image) => [Number(image.dataset.images), image.src]);
      if (more) pictures.push(...JSON.parse(more.textContent));
      pictures.sort((a, b) => a[0] - b[0]);
      ends.slice(0, -1).forEach((image) => { image.hidden = true; });
      return { figure, image: ends[ends.length - 1], seen: figure.querySelector(".seen"), pictures };
    });
    const show = (time) => {
      for (const { figure, image, seen, pictures } of viewers) {
        const [images, uri] = pictures.filter(([at]) => at <= time).pop() || pictures[0];
        if (image.src !== uri) image.src = uri;
        image.alt = `${figure.dataset.kind} of ${figure.dataset.label} after ${spoken(images)} images`;
        if (seen) seen.textContent = `${spoken(images)} images`;
      }
    };
    if (!slider) { show(Infinity); continue; }
    const times = slider.dataset.times.split(" ").map(Number);
    const moved = () => {
      const time = times[Number(slider.value)];
      slider.setAttribute("aria-valuetext", `${spoken(time)} images seen`);
      output.textContent = `${spoken(time)} images`;
      show(time);
    };
    slider.addEventListener("input", moved);
    moved();
  }

  // Parallel coordinates: a line for each run, across an axis for each setting to its value of the metric, the best on top.
  // Numeric axes are logarithmic if their values span a decade; texts are in the order of their mean value of the metric.
  const HEIGHT = 350, TOP = 46, BOTTOM = 22;
  const inPixels = (share) => HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share;
  const cut = (text, most) => (text.length > most ? `…${text.slice(1 - most)}` : text);
  const numericAxis = (numbers, fewest) => {
    const isLog = spansADecade(numbers), scale = isLog ? Math.log10 : (value) => value;
    let [low, high] = [Math.min(...numbers), Math.max(...numbers)].map(scale), ticks = [...new Set(numbers)].sort((a, b) => a - b);
    if (ticks.length <= fewest) [low, high] = [low - 0.12 * (high - low || 8), high + 0.12 * (high - low || 8)];
    else {
      ticks = isLog ? logTicks(10 ** low, 10 ** high, 6) : niceTicks(low, high, 5);
      [low, high] = [Math.min(low, scale(ticks[0])), Math.max(high, scale(ticks[ticks.length - 1]))];
    }
    const share = (value) => (scale(value) - low) / (high - low);
    return { shares: numbers.map(share), ticks: ticks.map((tick) => [plain(tick), share(tick)]) };
  };
  const textAxis = (texts, values, higher) => {
    const mean = (text) => { const own = values.filter((_, row) => texts[row] === text); return own.reduce((a, b) => a + b) / own.length; };
    const order = [...new Set(texts)].sort((a, b) => (higher ? 1 : -1) * (mean(a) - mean(b)) || a.localeCompare(b));
    const share = (text) => (order.indexOf(text) + 0.5) / order.length;
    return { shares: texts.map(share), ticks: order.map((text) => [cut(text, 20), share(text)]) };
  };
  const parallel = ({ labels, settings, metric, values, higher }) => {
    const swept = Object.entries(settings).filter(([, found]) => new Set(found).size > 1);
    if (labels.length < 2 || !swept.length) return null;
    const titles = [...swept.map(([key]) => key), metric], isMetric = (axis) => axis === swept.length;
    const axes = [...swept.map(([, found]) => (found.every((each) => typeof each === "number") ? found : found.map(String))), values];
    const placed = axes.map((axis, place) => (typeof axis[0] === "string" ? textAxis(axis, values, higher) : numericAxis(axis, isMetric(place) ? 0 : 8)));
    const end = placed[placed.length - 1], turn = (share) => (higher ? share : 1 - share);
    end.shares = end.shares.map(turn);
    end.ticks = end.ticks.map(([text, share]) => [text, turn(share)]);
    const room = (place) => 26 + Math.max(...placed[place].ticks.map(([text]) => 7.2 * text.length), 3.9 * Math.min(titles[place].length, 26));
    const left = room(0), right = room(axes.length - 1), gap = Math.max(170, Math.min(330, (1150 - left - right) / (axes.length - 1)));
    const width = Math.round(left + right + gap * (axes.length - 1)), x = (place) => Math.round(left + gap * place);
    const picture = svg("svg", { class: "parallel", viewBox: `0 0 ${width} ${HEIGHT}`, role: "group", style: `min-width:${Math.round(0.62 * width)}px;max-width:${width}px` });
    picture.setAttribute("aria-label", `${labels.length} runs across ${titles.join(", ")}`);
    const lines = svg("g", { class: "lines" });
    const worst = Math.min(...end.shares), best = Math.max(...end.shares);
    for (let row = labels.length - 1; row >= 0; row -= 1) { // the best is drawn last
      let path = "";
      placed.forEach(({ shares }, place) => {
        const y = inPixels(shares[row]).toFixed(1), middle = x(place) - gap / 2;
        path += place ? `C${middle} ${inPixels(placed[place - 1].shares[row]).toFixed(1)} ${middle} ${y} ${x(place)} ${y}` : `M${x(0)} ${y}`;
      });
      const quality = best > worst ? Math.round((8 * (end.shares[row] - worst)) / (best - worst)) : 8;
      const texts = titles.map((title, place) => `${title} ${typeof axes[place][row] === "string" ? axes[place][row] : plain(axes[place][row], 5)}`);
      const text = `${labels[row]}: ${texts.slice(0, -1).join(", ")}; ${texts[texts.length - 1]}`;
      const line = svg("g", { class: `q${quality}`, tabindex: 0, role: "img", "aria-label": text });
      line.append(svg("title", {}, text), svg("path", { class: "wide", d: path }), svg("path", { class: "thread", d: path }));
      lines.append(line);
    }
    picture.append(lines);
    placed.forEach(({ ticks }, place) => {
      const axis = svg("g", {});
      axis.append(svg("line", { class: "axis", x1: x(place), x2: x(place), y1: TOP, y2: HEIGHT - BOTTOM }));
      axis.append(svg("text", { class: "title", x: x(place), y: TOP - 22 }, cut(titles[place], 26)));
      for (const [text, share] of ticks) {
        axis.append(svg("line", { class: "axis", x1: x(place) - 3, x2: x(place) + 3, y1: inPixels(share), y2: inPixels(share) }));
        axis.append(svg("text", { class: isMetric(place) ? "tick after" : "tick y", x: x(place) + (isMetric(place) ? 8 : -8), y: inPixels(share) + 4 }, text));
      }
      picture.append(axis);
    });
    return picture;
  };
  for (const figure of all(".wide-figure")) {
    const readout = figure.querySelector(".readout"), idle = readout.dataset.idle;
    const drawn = parallel(JSON.parse(figure.querySelector("script").textContent));
    figure.hidden = !drawn;
    if (!drawn) continue;
    figure.querySelector(".parallel-box").append(drawn);
    readout.textContent = idle;
    for (const line of all(".lines > g", figure)) {
      for (const event of ["pointerenter", "focus"]) line.addEventListener(event, () => { readout.textContent = line.getAttribute("aria-label"); });
      for (const event of ["pointerleave", "blur"]) line.addEventListener(event, () => { readout.textContent = idle; });
    }
  }

  // The section that is in sight, in the navigation.
  const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
  const sections = all("main > section");
  const mark = () => {
    const current = sections.filter((section) => section.getBoundingClientRect().top < 140).pop();
    for (const [id, link] of links) {
      if (current && id === current.id) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
    }
  };
  addEventListener("scroll", mark, { passive: true });
  mark();
  const unfold = () => {
    const target = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target && target.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", unfold);
  unfold();

  // Curves.
  const source = document.getElementById("curves-data");
  if (!source) return;
  const { labels, looks, charts } = JSON.parse(source.textContent);
  const hidden = new Set();
  let logarithmic = false, smoothing = 0;

  const smooth = (values) => {
    let mean = 0, weight = 0;
    return values.map((value) => { mean = smoothing * mean + (1 - smoothing) * value; weight = smoothing * weight + 1 - smoothing; return mean / weight; });
  };
  const swatch = (run) => {
    const picture = svg("svg", { class: `swatch ${looks[run]}`, viewBox: "0 0 26 10", width: 26, height: 10, "aria-hidden": "true" });
    picture.append(svg("line", { class: "line", x1: 1, x2: 25, y1: 5, y2: 5 }));
    return picture;
  };

  class Plot {
    constructor(box, chart) {
      this.box = box;
      this.chart = chart;
      this.described = box.querySelector("svg").getAttribute("aria-label");
      this.at = null;
      this.tip = html("div", "tip");
      this.tip.hidden = true;
      box.after(this.tip);
      // A slider over the images seen, so that arrow keys and screen readers can walk along the curves.
      this.box.tabIndex = 0;
      this.box.setAttribute("role", "slider");
      this.box.setAttribute("aria-label", `${this.described}. Arrow keys read values.`);
      box.addEventListener("pointermove", (event) => this.point(event));
      box.addEventListener("pointerdown", (event) => this.point(event));
      box.addEventListener("pointerleave", () => this.leave());
      box.addEventListener("blur", () => this.leave());
      box.addEventListener("keydown", (event) => this.key(event));
      this.width = 0;
      new ResizeObserver(() => { if (Math.abs(box.clientWidth - this.width) > 1) this.draw(); }).observe(box);
    }
    draw() {
      const width = this.width = this.box.clientWidth;
      if (!width) return;
      const height = Math.round(Math.max(200, Math.min(300, width * 0.56)));
      const left = 54, right = 12, top = 12, bottom = 32;
      const shown = this.chart.series.filter((series) => !hidden.has(series.run));
      const canBe = this.chart.expected.every(([, value]) => value > 0) && shown.every((series) => [...series.y, ...series.bounds.map(([, low]) => low)].every((value) => value > 0));
      const isLog = this.isLog = logarithmic && canBe && shown.length > 0;
      const numbers = shown.flatMap((series) => [...series.y, ...series.bounds.flatMap(([, low, high]) => [low, high])]);
      if (shown.length) numbers.push(...this.chart.expected.map(([, value]) => value));
      const low = numbers.length ? Math.min(...numbers) : 0, high = numbers.length ? Math.max(...numbers) : 1;
      const ticks = isLog ? logTicks(low, high, 6) : niceTicks(low, high, 5);
      const last = Math.max(1, ...this.chart.series.map((series) => series.x[series.x.length - 1]));
      const digits = tickDigits(ticks), scale = isLog ? Math.log10 : (value) => value;
      const bounds = [scale(ticks[0]), scale(ticks[ticks.length - 1])];
      this.x = (images) => left + ((width - left - right) * images) / last;
      this.y = (value) => height - bottom - ((height - top - bottom) * (scale(value) - bounds[0])) / (bounds[1] - bounds[0]);
      this.images = (x) => ((x - left) / (width - left - right)) * last;
      const picture = this.picture = svg("svg", { class: "plot", viewBox: `0 0 ${width} ${height}`, width, height, "aria-hidden": "true" });
      for (const tick of ticks) {
        picture.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: this.y(tick), y2: this.y(tick) }));
        picture.append(svg("text", { class: "tick y", x: left - 8, y: this.y(tick) + 4 }, plain(tick, isLog ? 4 : digits)));
      }
      for (const tick of niceTicks(0, last, width < 460 ? 5 : 7)) {
        if (tick <= last * 1.0001) picture.append(svg("text", { class: "tick x", x: Math.min(this.x(tick), width - 16), y: height - bottom + 18 }, short(tick)));
      }
      picture.append(svg("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
      if (shown.length) for (const [images, value, tolerance] of this.chart.expected) this.published(images, value, tolerance, picture, [ticks[0], ticks[ticks.length - 1]]);
      this.lines = shown.map((series) => this.line(series, picture));
      this.cursor = svg("line", { class: "cursor", y1: top, y2: height - bottom, visibility: "hidden" });
      picture.append(this.cursor);
      this.box.replaceChildren(picture);
      this.times = [...new Set(shown.flatMap((series) => series.x))].sort((a, b) => a - b);
      this.announce(this.times.length - 1);
    }
    published(images, value, tolerance, picture, [low, high]) {
      const x = this.x(images), within = (number) => this.y(Math.min(Math.max(number, low), high));
      picture.append(svg("line", { class: "tolerance", x1: x, x2: x, y1: within(value - tolerance), y2: within(value + tolerance) }));
      picture.append(svg("path", { class: "published", d: `M${x},${this.y(value)}h0` }));
    }
    line(series, picture) {
      const group = svg("g", { class: `run ${looks[series.run]}` });
      const path = (values) => series.x.map((x, place) => `${this.x(x).toFixed(1)},${this.y(values[place]).toFixed(1)}`).join(" ");
      const within = series.bounds;
      if (within.length > 1) {
        const upper = within.map(([x, , high]) => `${this.x(x)},${this.y(high)}`), lower = within.map(([x, low]) => `${this.x(x)},${this.y(low)}`).reverse();
        group.append(svg("polygon", { class: "band", points: [...upper, ...lower].join(" ") }));
      } else if (within.length) {
        const [x, low, high] = within[0];
        group.append(svg("line", { class: "bar", x1: this.x(x), x2: this.x(x), y1: this.y(low), y2: this.y(high) }));
      }
      const smoothed = smoothing > 0 && !this.chart.has_points && series.y.length > 2;
      const values = smoothed ? smooth(series.y) : series.y;
      if (smoothed) group.append(svg("polyline", { class: "faint", points: path(series.y) }));
      group.append(svg("polyline", { class: "line", points: path(values) }));
      if (this.chart.has_points || series.x.length === 1) series.x.forEach((x, place) => group.append(svg("path", { class: "dot", d: `M${this.x(x)},${this.y(values[place])}h0` })));
      if (series.best !== null) group.append(svg("circle", { class: "best", cx: this.x(series.x[series.best]), cy: this.y(values[series.best]), r: 6.5 }));
      picture.append(group);
      return { series, values };
    }
    nearest(images) {
      let best = 0;
      this.times.forEach((time, place) => { if (Math.abs(time - images) < Math.abs(this.times[best] - images)) best = place; });
      return best;
    }
    read(place) {
      const time = this.times[place], spacing = this.times.length > 1 ? (this.times[this.times.length - 1] - this.times[0]) / this.times.length : 1;
      return this.lines.map(({ series, values }) => {
        let near = 0;
        series.x.forEach((x, index) => { if (Math.abs(x - time) < Math.abs(series.x[near] - time)) near = index; });
        if (Math.abs(series.x[near] - time) > 3 * spacing) return null;
        const bound = series.bounds.find(([images]) => images === series.x[near]), range = bound ? ` [${plain(bound[1])}, ${plain(bound[2])}]` : "";
        return { run: series.run, value: values[near], text: plain(values[near]) + range + (series.best === near ? " best" : "") };
      }).filter(Boolean).sort((a, b) => b.value - a.value);
    }
    announce(place) {
      this.at = place;
      const time = this.times[place];
      this.box.setAttribute("aria-valuemin", this.times[0] ?? 0);
      this.box.setAttribute("aria-valuemax", this.times[this.times.length - 1] ?? 0);
      this.box.setAttribute("aria-valuenow", time ?? 0);
      const said = place < 0 ? "no run is shown" : `${spoken(time)} images: ${this.read(place).map(({ run, text }) => `${labels[run]} ${text}`).join(", ")}`;
      this.box.setAttribute("aria-valuetext", said);
    }
    show(place) {
      if (place < 0 || !this.times.length) return;
      this.announce(place);
      const x = this.x(this.times[place]);
      this.cursor.setAttribute("x1", x);
      this.cursor.setAttribute("x2", x);
      this.cursor.setAttribute("visibility", "visible");
      this.tip.replaceChildren(html("b", "", `${short(this.times[place])} images`));
      const rows = this.read(place);
      for (const { run, text } of rows.slice(0, 12)) {
        const row = html("div");
        row.append(swatch(run), html("span", "", labels[run]), html("em", "", text));
        row.lastChild.style.fontStyle = "normal";
        this.tip.append(row);
      }
      if (rows.length > 12) this.tip.append(html("div", "", `and ${rows.length - 12} more`));
      this.tip.hidden = false;
      const room = this.box.clientWidth;
      this.tip.style.left = `${Math.max(4, Math.min(x + (x > room / 2 ? -this.tip.offsetWidth - 4 : 26), room - this.tip.offsetWidth + 8))}px`;
      // Below the chart, so that it hides nothing of it; above, where there is no room.
      const above = this.box.getBoundingClientRect().bottom + this.tip.offsetHeight > innerHeight;
      this.tip.style.top = above ? "auto" : "100%";
      this.tip.style.bottom = above ? "100%" : "auto";
    }
    point(event) { if (this.times && this.times.length) this.show(this.nearest(this.images(event.clientX - this.box.getBoundingClientRect().left))); }
    leave() { this.tip.hidden = true; if (this.cursor) this.cursor.setAttribute("visibility", "hidden"); }
    key(event) {
      const end = this.times.length - 1, far = Math.max(1, Math.round(end / 10));
      const to = { ArrowRight: this.at + 1, ArrowUp: this.at + 1, ArrowLeft: this.at - 1, ArrowDown: this.at - 1, PageUp: this.at + far, PageDown: this.at - far, Home: 0, End: end }[event.key];
      if (event.key === "Escape") this.leave();
      if (to === undefined) return;
      event.preventDefault();
      this.show(Math.max(0, Math.min(end, to)));
    }
  }
  const plots = all(".drawing").map((box, place) => new Plot(box, charts[place]));
  const redraw = () => plots.forEach((plot) => plot.draw());
  const toggles = all(".legend [data-run]");
  const choose = (runs) => {
    for (const button of toggles) {
      const run = Number(button.dataset.run), shown = runs.has(run);
      if (shown) hidden.delete(run); else hidden.add(run);
      button.setAttribute("aria-pressed", String(shown));
    }
    redraw();
  };
  const chosen = (button) => new Set(button.dataset.runs.split(" ").filter(Boolean).map(Number));
  const quick = all(".legend .choice");
  for (const button of quick) button.addEventListener("click", () => choose(chosen(button)));
  if (toggles.length > 16) choose(chosen(quick[quick.length - 1])); // more lines than can be told apart
  for (const button of toggles) {
    button.addEventListener("click", () => {
      const run = Number(button.dataset.run), shown = hidden.has(run);
      if (shown) hidden.delete(run); else hidden.add(run);
      button.setAttribute("aria-pressed", String(shown));
      redraw();
    });
  }
  document.getElementById("logarithmic").addEventListener("change", (event) => { logarithmic = event.target.checked; redraw(); });
  document.getElementById("smoothing").addEventListener("input", (event) => {
    smoothing = Number(event.target.value);
    document.getElementById("smoothing-value").textContent = smoothing ? smoothing.toFixed(2) : "off";
    redraw();
  });
})();
