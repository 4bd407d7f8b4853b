// Draws the interactive parts of a report from the JSON in the page. Names of photos become text
// nodes or attributes set through the DOM, never markup.
"use strict";
(() => {
  const run = JSON.parse(document.getElementById("run-data").textContent);
  const $ = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const number = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
  const fmt = (value) => number.format(value);
  const narrow = matchMedia("(max-width: 520px)");
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // ------------------------------------------------------------------ small helpers

  function el(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "class") node.className = value;
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value !== undefined && value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined));
    return node;
  }
  const SVG = "http://www.w3.org/2000/svg";
  function svg(tag, attributes = {}) {
    const node = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  }
  const { bytes, VIEWS } = common;
  const as = (Kind, text) => new Kind(bytes(text).buffer);

  const urls = new Map();
  function thumbUrl(i) {
    const photo = run.photos[i];
    if (!photo || !photo.thumb) return null;
    if (!urls.has(i)) urls.set(i, URL.createObjectURL(new Blob([bytes(photo.thumb)], { type: "image/webp" })));
    return urls.get(i);
  }

  // viridis, ten of its colours
  const RAMP = [[68, 1, 84], [72, 40, 120], [62, 74, 137], [49, 104, 142], [38, 130, 142], [31, 158, 137],
    [53, 183, 121], [110, 206, 88], [181, 222, 43], [253, 231, 37]];
  function ramp(share, colours = RAMP) {
    const place = Math.min(Math.max(share, 0), 1) * (colours.length - 1);
    const low = Math.min(Math.floor(place), colours.length - 2);
    const rest = place - low;
    return colours[low].map((v, k) => Math.round(v + (colours[low + 1][k] - v) * rest));
  }
  const rgb = (c) => `rgb(${c[0]} ${c[1]} ${c[2]})`;
  // colours of match lines: light throughout, so that they show on dark and on bright photos
  const BRIGHT = [[176, 120, 255], [110, 150, 255], [60, 200, 230], [90, 230, 150], [255, 238, 80]];
  const gradient = (colours) => `linear-gradient(90deg, ${colours.map(rgb).join(",")})`;

  const tip = el("div", { class: "tip", role: "status" });
  tip.hidden = true;
  document.body.append(tip);
  function showTip(text, x, y) {
    tip.textContent = text;
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - box.width - 6))}px`;
    tip.style.top = `${y + 18 + box.height > innerHeight ? y - box.height - 10 : y + 18}px`;
  }
  const hideTip = () => { tip.hidden = true; };

  // ------------------------------------------------------------------ pairs

  const pairData = (a, b) => run.pairs[`${a}-${b}`] ?? null;
  function lines(entry) {
    if (!entry || !entry.lines) return [];
    const data = bytes(entry.lines);
    const view = new DataView(data.buffer);
    const found = [];
    for (let at = 0; at + 9 <= data.length; at += 9) {
      const score = view.getUint8(at + 8);
      found.push([0, 2, 4, 6].map((k) => view.getUint16(at + k, true) / 65535).concat([(score >> 1) / 127, score & 1]));
    }
    return found;
  }
  // the colour scale spans the scores of this page, from the 2nd to the 98th percentile
  let scoreLow = 0, scoreHigh = 1;
  {
    const scores = [];
    for (const entry of Object.values(run.pairs).slice(0, 200)) for (const line of lines(entry)) scores.push(line[4]);
    if (scores.length > 1) {
      scores.sort((a, b) => a - b);
      scoreLow = scores[Math.floor(0.02 * scores.length)];
      scoreHigh = scores[Math.ceil(0.98 * (scores.length - 1))];
      if (scoreHigh - scoreLow < 0.05) { scoreLow = Math.max(0, scoreHigh - 0.05); scoreHigh = scoreLow + 0.05; }
    }
  }
  const scoreColour = (score) => rgb(ramp((score - scoreLow) / (scoreHigh - scoreLow), BRIGHT));
  function scoreLegend() {
    const bar = el("span", { class: "ramp", "aria-hidden": "true" });
    bar.style.background = gradient(BRIGHT);
    return el("div", { class: "legend" }, el("span", {}, "Confidence of matches"), el("span", {}, scoreLow.toFixed(2)), bar, el("span", {}, scoreHigh.toFixed(2)));
  }

  function pairCounts(a, b) {
    const entry = pairData(a, b) ?? graphEntry(a, b);
    if (!entry) return "not matched";
    const all = `${fmt(entry.matches)} matches`;
    if (entry.inliers < 0) return all;
    return `${fmt(entry.inliers)} of ${all} ${run.kind === "localization" ? "inliers of the pose" : "verified"}`;
  }

  function photoLink(i) {
    const photo = run.photos[i];
    return el("button", { class: "rowbutton", type: "button", onclick: () => openPhoto(i) }, photo.name);
  }

  function pairFigure(a, b) {
    const entry = pairData(a, b);
    const sizes = [a, b].map((i) => run.photos[i].size ?? [4, 3]);
    // equal heights side by side, or equal widths one above the other on a phone
    const upright = narrow.matches && sizes.every((s) => s[0] >= s[1]);
    const gap = 6;
    const panels = [];
    let width, height;
    if (upright) {
      width = 400;
      const heights = sizes.map((s) => width * s[1] / s[0]);
      panels.push([0, 0, width, heights[0]], [0, heights[0] + gap, width, heights[1]]);
      height = heights[0] + heights[1] + gap;
    } else {
      const common = 300;
      const widths = sizes.map((s) => common * s[0] / s[1]);
      panels.push([0, 0, widths[0], common], [widths[0] + gap, 0, widths[1], common]);
      width = widths[0] + widths[1] + gap;
      height = common;
    }
    const drawing = svg("svg", { viewBox: `0 0 ${width.toFixed(1)} ${height.toFixed(1)}`, role: "img" });
    drawing.setAttribute("aria-label", `${run.photos[a].name} and ${run.photos[b].name}: ${pairCounts(a, b)}`);
    [a, b].forEach((i, side) => {
      const [x, y, w, h] = panels[side];
      const url = thumbUrl(i);
      if (url) {
        const image = svg("image", { x, y, width: w, height: h, preserveAspectRatio: "none" });
        image.setAttribute("href", url);
        drawing.append(image);
      } else drawing.append(svg("rect", { x, y, width: w, height: h, fill: "#8886" }));
    });
    const scale = width / 640;
    const good = svg("g", { "stroke-linecap": "round" });
    const rejected = svg("g", { class: "rejected", "stroke-opacity": "0.55" });
    const found = lines(entry);
    for (const [x0, y0, x1, y1, score, inlier] of found) {
      const p = [panels[0][0] + x0 * panels[0][2], panels[0][1] + y0 * panels[0][3],
        panels[1][0] + x1 * panels[1][2], panels[1][1] + y1 * panels[1][3]].map((v) => v.toFixed(1));
      const path = `M${p[0]} ${p[1]}L${p[2]} ${p[3]}`;
      if (inlier) {
        const colour = scoreColour(score);
        good.append(svg("path", { d: path, stroke: colour, "stroke-width": (0.9 * scale).toFixed(2), "stroke-opacity": "0.75" }));
        for (const k of [0, 2]) good.append(svg("circle", { cx: p[k], cy: p[k + 1], r: (1.7 * scale).toFixed(2), fill: colour }));
      } else rejected.append(svg("path", { d: path, stroke: "#e5484d", "stroke-width": (0.9 * scale).toFixed(2) }));
    }
    drawing.append(rejected, good);
    const figure = el("figure", { class: "pair card" }, drawing,
      el("figcaption", {}, el("b", {}, pairCounts(a, b)),
        el("span", { class: "ends" }, photoLink(a), " · ", photoLink(b))));
    if (found.length && found.every((line) => !line[5])) figure.classList.add("all-rejected");
    if (!entry) figure.querySelector("figcaption").append(el("span", { class: "ends hint" }, "The matches of this pair are not drawn, to keep the page small."));
    figure.dataset.pair = `${a}-${b}`;
    return figure;
  }

  // a pair is drawn when it is scrolled near the screen
  const waiting = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      waiting.unobserve(entry.target);
      const [a, b] = entry.target.dataset.later.split("-").map(Number);
      entry.target.replaceWith(pairFigure(a, b));
    }
  }, { rootMargin: "600px" });
  function latePair(a, b) {
    const place = el("figure", { class: "pair card", "data-later": `${a}-${b}` });
    place.style.minHeight = "180px";
    waiting.observe(place);
    return place;
  }
  addEventListener("beforeprint", () => {
    for (const place of document.querySelectorAll("[data-later]")) {
      const [a, b] = place.dataset.later.split("-").map(Number);
      place.replaceWith(pairFigure(a, b));
    }
  });

  // ------------------------------------------------------------------ photos

  function coverage(i) {
    const photo = run.photos[i];
    const canvas = el("canvas", { width: 16, height: 12, "aria-hidden": "true", class: "grid" });
    if (!photo.grid) return canvas;
    const counts = bytes(photo.grid);
    const top = Math.log1p(Math.max(...counts));
    const context = canvas.getContext("2d");
    const image = context.createImageData(16, 12);
    counts.forEach((count, k) => {
      const [r, g, b] = ramp(count ? 0.25 + 0.75 * Math.log1p(count) / top : 0);
      image.data.set([r, g, b, count ? 110 : 170], 4 * k);
    });
    context.putImageData(image, 0, 0);
    return canvas;
  }
  function picture(i, withCoverage) {
    const photo = run.photos[i];
    const url = thumbUrl(i);
    const box = el("div", { class: "photo" });
    if (url) box.append(el("img", { src: url, alt: photo.name, decoding: "async" }));
    else box.append(el("div", { class: "lost" }, photo.problem ? photo.problem : "No thumbnail of this photo."));
    if (withCoverage && url) box.append(coverage(i));
    return box;
  }
  const inModel = (photo) => photo.points !== null && photo.points !== undefined;
  function photoFacts(i) {
    const photo = run.photos[i];
    const rows = [];
    if (photo.size) rows.push(["Size", `${photo.size[0]} × ${photo.size[1]}`]);
    rows.push(["Keypoints", fmt(photo.keypoints)], ["Coverage", `${Math.round(100 * photo.coverage)} % of the picture`]);
    if (inModel(photo)) rows.push(["3D points", fmt(photo.points)]);
    const answer = run.queries.find((q) => q.photo === i);
    if (answer) {
      rows.push(["Pose", answer.status === "localized" ? `confidence ${answer.confidence}` : answer.status]);
      rows.push(["Inliers", `${fmt(answer.inliers)} of ${fmt(answer.correspondences)}`]);
      if (answer.reason) rows.push(["Reason", answer.reason]);
      if (answer.where) rows.push(["Position", answer.where.map((v) => v.toFixed(3)).join(", ")]);
    }
    const list = el("dl", { class: "kv" });
    for (const [key, value] of rows) list.append(el("dt", {}, key), el("dd", {}, value));
    return list;
  }
  function photoDetails(i, where) {
    const photo = run.photos[i];
    const box = el("div", { class: "details" });
    const shown = picture(i, false);
    const grid = coverage(i);
    grid.hidden = true;
    if (photo.thumb && photo.grid) shown.append(grid);
    box.append(shown, el("div", { class: "name" }, photo.name), photoFacts(i));
    const buttons = el("div", { class: "buttons" });
    if (photo.thumb && photo.grid) {
      buttons.append(el("button", { type: "button", "aria-pressed": "false", onclick: (event) => {
        grid.hidden = !grid.hidden;
        event.currentTarget.setAttribute("aria-pressed", String(!grid.hidden));
      } }, "Keypoint coverage"));
    }
    if (viewer && viewer.has(i)) {
      if (where === "panel") buttons.append(el("button", { type: "button", onclick: () => viewer.lookFrom(i) }, "View from here"));
      else buttons.append(el("button", { type: "button", onclick: () => { $("photo-dialog").close(); viewer.select(i); $("model").scrollIntoView(); } }, "Show in the model"));
    }
    if (photo.href) buttons.append(el("a", { href: photo.href, target: "_blank", rel: "noopener" }, "Original photo"));
    box.append(buttons);
    const best = answerPartner(i) ?? photo.best;
    if (best !== null && best !== undefined) {
      const figure = pairData(i, best) || !pairData(best, i) ? pairFigure(i, best) : pairFigure(best, i);
      box.append(el("h3", {}, run.kind === "localization" ? "Most inliers with" : "Best pair"), figure);
    }
    return box;
  }
  function answerPartner(i) {
    const answer = run.queries.find((q) => q.photo === i);
    return answer ? answer.best : null;
  }
  function openPhoto(i) {
    const dialog = $("photo-dialog");
    dialog.replaceChildren(
      el("button", { class: "close", type: "button", "aria-label": "Close", onclick: () => dialog.close() }, "✕"),
      photoDetails(i, "dialog"));
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }
  $("photo-dialog").addEventListener("click", (event) => {
    if (event.target === event.currentTarget) event.currentTarget.close();
  });

  function photosSection() {
    const root = $("photos-list");
    if (!root) return;
    const PAGE = 48;
    let shown = PAGE;
    const points = (photo) => (inModel(photo) ? photo.points : -1);
    const orders = {
      weak: (a, b) => points(run.photos[a]) - points(run.photos[b]) || run.photos[a].coverage - run.photos[b].coverage,
      coverage: (a, b) => run.photos[a].coverage - run.photos[b].coverage,
      name: (a, b) => a - b,
    };
    const render = () => {
      const text = $("photos-filter").value.trim().toLowerCase();
      const found = run.photos.map((_, i) => i).filter((i) => run.photos[i].name.toLowerCase().includes(text));
      found.sort(orders[$("photos-sort").value]);
      const overlay = $("photos-coverage").checked;
      root.replaceChildren(...found.slice(0, shown).map((i) => {
        const photo = run.photos[i];
        const facts = [`${fmt(photo.keypoints)} keypoints`, `coverage ${Math.round(100 * photo.coverage)}\u00a0%`];
        if (inModel(photo)) facts.push(`${fmt(photo.points)} 3D points`);
        const missing = run.hasModel && !inModel(photo) && run.kind !== "localization";
        return el("button", { type: "button", onclick: () => openPhoto(i), title: photo.name }, picture(i, overlay),
          el("span", { class: "name" }, photo.name),
          ...facts.map((fact) => el("span", { class: "small" }, fact)),
          photo.problem ? el("span", { class: "small tag" }, "could not be read") : missing ? el("span", { class: "small tag" }, photo.elsewhere ? "in another model" : "not in the model") : null);
      }));
      $("photos-count").textContent = found.length === run.photos.length ? `${fmt(found.length)} photos` : `${fmt(found.length)} of ${fmt(run.photos.length)} photos`;
      $("photos-more").hidden = found.length <= shown;
    };
    for (const id of ["photos-filter", "photos-sort", "photos-coverage"]) {
      $(id).addEventListener("input", () => { shown = PAGE; render(); });
    }
    $("photos-more").addEventListener("click", () => { shown += 2 * PAGE; render(); });
    render();
  }

  // ------------------------------------------------------------------ match graph

  let graphCells = null;
  if (run.graph) {
    const ids = as(run.graph.wide ? Uint32Array : Uint16Array, run.graph.pairs);
    const Count = run.graph.large ? Int32Array : Int16Array;
    graphCells = { ids, matches: as(Count, run.graph.matches), inliers: as(Count, run.graph.inliers), of: new Map() };
    for (let k = 0; k < graphCells.matches.length; k++) graphCells.of.set(ids[2 * k] * run.photos.length + ids[2 * k + 1], k);
  }
  function graphEntry(a, b) {
    if (!graphCells) return null;
    const n = run.photos.length;
    const k = graphCells.of.get(a * n + b) ?? graphCells.of.get(b * n + a);
    return k === undefined ? null : { matches: graphCells.matches[k], inliers: graphCells.inliers[k] };
  }

  function graphSection() {
    const canvas = $("graph");
    if (!canvas) return;
    const g = run.graph;
    const cells = (n) => Math.ceil(n / g.joined);
    const rows = cells(g.rows), columns = cells(g.columns);
    const value = (k) => (run.verified ? Math.max(0, graphCells.inliers[k]) : graphCells.matches[k]);
    let top = 1;
    const some = graphCells.matches.some((_, k) => value(k) > 0);
    for (let k = 0; k < graphCells.matches.length; k++) top = Math.max(top, value(k));
    const zoom = Math.max(1, Math.floor(1120 / Math.max(rows, columns)));
    canvas.width = columns * zoom;
    canvas.height = rows * zoom;
    canvas.parentElement.style.maxWidth = `${Math.max(280, columns * 44)}px`; // no huge cells for few photos
    let place = null, at = null, cursor = null;
    const setOrder = () => {
      const order = $("graph-order") && $("graph-order").value === "connected" ? g.order : null;
      place = new Int32Array(run.photos.length);
      at = new Int32Array(run.photos.length);
      for (let i = 0; i < run.photos.length; i++) { at[i] = order ? order[i] : i; place[at[i]] = i; }
    };
    // for each cell 1 + the index of its pair, 0 for none
    let taken = null;
    const draw = () => {
      setOrder();
      taken = new Int32Array(rows * columns);
      const small = el("canvas", { width: columns, height: rows });
      const context = small.getContext("2d");
      const image = context.createImageData(columns, rows);
      const rejected = dark.matches ? [58, 64, 70] : [222, 224, 222];
      const put = (r, c, k) => {
        if (r < 0 || c < 0 || r >= rows || c >= columns) return;
        taken[r * columns + c] = k + 1;
        const v = value(k);
        const colour = v > 0 ? ramp(0.06 + 0.94 * Math.sqrt(v / top)) : rejected;
        image.data.set([...colour, 255], 4 * (r * columns + c));
      };
      for (let k = 0; k < graphCells.matches.length; k++) {
        const a = place[graphCells.ids[2 * k]], b = place[graphCells.ids[2 * k + 1]];
        if (g.symmetric) {
          const r = Math.floor(a / g.joined), c = Math.floor(b / g.joined);
          put(r, c, k);
          put(c, r, k);
        } else put(Math.floor(a / g.joined), Math.floor((b - g.offset) / g.joined), k);
      }
      context.putImageData(image, 0, 0);
      const large = canvas.getContext("2d");
      large.imageSmoothingEnabled = false;
      large.clearRect(0, 0, canvas.width, canvas.height);
      large.drawImage(small, 0, 0, canvas.width, canvas.height);
      if (g.symmetric) {
        large.fillStyle = css("--soft"); // no cell of a pair has this colour
        for (let i = 0; i < rows; i++) large.fillRect(i * zoom, i * zoom, zoom, zoom);
      }
      if (cursor) {
        large.strokeStyle = css("--bad");
        large.lineWidth = 3;
        large.strokeRect(cursor[1] * zoom - 1.5, cursor[0] * zoom - 1.5, zoom + 3, zoom + 3);
      }
    };
    const ends = (r, c) => {
      const k = taken[r * columns + c];
      if (k) return [graphCells.ids[2 * k - 2], graphCells.ids[2 * k - 1]];
      const a = at[Math.min(r * g.joined, g.rows - 1)];
      const b = at[Math.min(c * g.joined + g.offset, run.photos.length - 1)];
      return [a, b];
    };
    const cellAt = (event) => {
      const box = canvas.getBoundingClientRect();
      const c = Math.floor((event.clientX - box.left) / box.width * columns);
      const r = Math.floor((event.clientY - box.top) / box.height * rows);
      return r >= 0 && c >= 0 && r < rows && c < columns ? [r, c] : null;
    };
    const describe = ([r, c]) => {
      const [a, b] = ends(r, c);
      if (a === b) return run.photos[a].name;
      return `${run.photos[a].name}\n${run.photos[b].name}\n${pairCounts(a, b)}`;
    };
    const choose = (cell) => {
      cursor = cell;
      draw();
      const [a, b] = ends(...cell);
      const shown = $("graph-pair");
      shown.replaceChildren(a === b ? el("p", { class: "hint" }, run.photos[a].name) : graphEntry(a, b) ? pairFigure(pairData(b, a) ? b : a, pairData(b, a) ? a : b) : el("p", { class: "hint" }, describe(cell)));
    };
    canvas.addEventListener("pointermove", (event) => {
      const cell = cellAt(event);
      if (cell) showTip(describe(cell), event.clientX, event.clientY);
      else hideTip();
    });
    canvas.addEventListener("pointerleave", hideTip);
    canvas.addEventListener("click", (event) => { const cell = cellAt(event); if (cell) choose(cell); });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      event.preventDefault();
      const [r, c] = cursor ?? [0, 0];
      choose([Math.min(Math.max(r + step[0], 0), rows - 1), Math.min(Math.max(c + step[1], 0), columns - 1)]);
    });
    if ($("graph-order")) $("graph-order").addEventListener("input", () => { cursor = null; draw(); });
    dark.addEventListener("change", draw);
    draw();
    const bar = el("span", { class: "ramp", "aria-hidden": "true" });
    bar.style.background = gradient(RAMP);
    const box = el("i", { "aria-hidden": "true" });
    box.style.cssText = "display:inline-block;width:.8em;height:.8em;border-radius:2px;background:" + (dark.matches ? "#3a4046" : "#dee0de");
    const empty = box.cloneNode();
    empty.style.background = css("--card");
    empty.style.boxShadow = "0 0 0 1px " + css("--line");
    $("graph-legend").append(el("span", {}, run.kind === "localization" ? "Inliers" : run.verified ? "Verified matches" : "Matches"), ...(some ? [el("span", {}, "1"), bar, el("span", {}, fmt(top))] : [el("span", {}, "none")]), el("span", {}, box, run.kind === "localization" ? " no inliers" : run.verified ? " rejected" : " none"), el("span", {}, empty, " without matches"));
    // the pair with the most inliers is shown first
    let best = -1;
    for (let k = 0; k < graphCells.matches.length; k++) if (best < 0 || value(k) > value(best)) best = k;
    const [a, b] = [graphCells.ids[2 * best], graphCells.ids[2 * best + 1]];
    $("graph-pair").replaceChildren(latePair(a, b));
  }

  const rejectedBox = $("show-rejected"); // in the gallery or in the table of queries
  if (rejectedBox) rejectedBox.addEventListener("input", () => document.body.classList.toggle("show-rejected", rejectedBox.checked));

  // ------------------------------------------------------------------ gallery

  function gallerySection() {
    const root = $("gallery");
    if (!root) return;
    for (const group of run.gallery) {
      const grid = el("div", { class: "gallery" }, ...group.pairs.map(([a, b]) => latePair(a, b)));
      root.append(el("h3", {}, group.title), group.text ? el("p", { class: "hint" }, group.text) : null ?? "", grid);
    }
    $("gallery-legend").replaceChildren(scoreLegend());
  }

  // ------------------------------------------------------------------ queries

  function queriesSection() {
    const body = $("queries-body");
    if (!body) return;
    const RANK = { high: 0, low: 1, none: 2 };
    const columns = {
      name: (q) => run.photos[q.photo].name,
      pose: (q) => RANK[q.confidence],
      inliers: (q) => q.inliers,
      ratio: (q) => (q.correspondences ? q.inliers / q.correspondences : -1),
      error: (q) => q.error ?? Infinity,
      position: (q) => q.position ?? Infinity,
      rotation: (q) => q.rotation ?? Infinity,
    };
    let sort = "inliers", up = true;
    const PAGE = 100;
    let limit = PAGE;
    const short = (v, digits) => (v === null || v === undefined ? "–" : v.toPrecision(digits));
    const render = () => {
      const text = $("queries-filter").value.trim().toLowerCase();
      const want = $("queries-status").value;
      const found = run.queries.filter((q) => run.photos[q.photo].name.toLowerCase().includes(text) && (want === "all" || q.confidence === want));
      found.sort((a, b) => {
        const x = columns[sort](a), y = columns[sort](b);
        return (x < y ? -1 : x > y ? 1 : a.photo - b.photo) * (up ? 1 : -1);
      });
      body.replaceChildren(...found.slice(0, limit).map((q) => {
        const word = { high: "high", low: "low", none: q.status === "closest" ? "closest photo" : "failed" }[q.confidence];
        const open = el("button", { type: "button", class: "rowbutton", "aria-expanded": "false" }, run.photos[q.photo].name);
        const row = el("tr", {}, el("td", { class: "text" }, open),
          el("td", { class: q.confidence === "none" ? "none-conf" : q.confidence }, word),
          el("td", { class: "num" }, fmt(q.inliers)),
          el("td", { class: "num" }, q.correspondences ? `${Math.round(100 * q.inliers / q.correspondences)} %` : "–"),
          el("td", { class: "num" }, q.error === null ? "–" : q.error.toFixed(2)),
          el("td", { class: "num" }, short(q.position, 2)),
          el("td", { class: "num" }, short(q.rotation, 2)),
          el("td", { class: "text small" }, q.reason || (q.best !== undefined && q.best !== null ? run.photos[q.best].name : "")));
        let detail = null;
        open.addEventListener("click", () => {
          if (detail) { detail.remove(); detail = null; } else {
            const cell = el("td", { class: "detail", colspan: 8 });
            if (q.best !== null && q.best !== undefined) cell.append(pairFigure(q.photo, q.best));
            else cell.append(picture(q.photo, false));
            const buttons = el("div", { class: "buttons" }, el("button", { type: "button", onclick: () => openPhoto(q.photo) }, "Details of the query"));
            if (viewer && viewer.has(q.photo)) buttons.append(el("button", { type: "button", onclick: () => { viewer.select(q.photo); $("model").scrollIntoView(); } }, "Show in the model"));
            cell.append(buttons);
            detail = el("tr", {}, cell);
            row.after(detail);
          }
          open.setAttribute("aria-expanded", String(detail !== null));
        });
        return row;
      }));
      $("queries-count").textContent = found.length === run.queries.length ? `${fmt(found.length)} queries` : `${fmt(found.length)} of ${fmt(run.queries.length)} queries`;
      $("queries-more").hidden = found.length <= limit;
      for (const head of document.querySelectorAll("th[data-sort]")) {
        if (head.dataset.sort === sort) head.setAttribute("aria-sort", up ? "ascending" : "descending");
        else head.removeAttribute("aria-sort");
      }
    };
    for (const head of document.querySelectorAll("th[data-sort]")) {
      head.querySelector("button").addEventListener("click", () => {
        if (sort === head.dataset.sort) up = !up;
        else { sort = head.dataset.sort; up = true; }
        render();
      });
    }
    for (const id of ["queries-filter", "queries-status"]) $(id).addEventListener("input", () => { limit = PAGE; render(); });
    $("queries-more").addEventListener("click", () => { limit += 3 * PAGE; render(); });
    if ($("queries-legend")) $("queries-legend").replaceChildren(scoreLegend());
    render();
  }

  // ------------------------------------------------------------------ model in 3D

  function makeViewer() {
    const stage = $("stage");
    const data = run.scene;
    if (!stage || !data) return null;
    const renderer = common.makeRenderer(stage, "3D view of the model. Drag to turn it, arrow keys to move it.");
    if (!renderer) {
      stage.replaceChildren(el("div", { class: "none" }, "This browser cannot draw in 3D (no WebGL)."));
      $("model").classList.add("nogl");
      return null;
    }
    const canvas = renderer.domElement;
    const scene = new THREE.Scene();
    const eye = new THREE.PerspectiveCamera(45, 1, 0.005, 200);
    const controls = new THREE.OrbitControls(eye, canvas);
    controls.zoomToCursor = true;
    controls.enableZoom = false; // the wheel scrolls the page until the view was clicked
    controls.listenToKeyEvents(canvas);
    canvas.addEventListener("pointerdown", () => { canvas.focus({ preventScroll: true }); controls.enableZoom = true; });
    canvas.addEventListener("focus", () => { controls.enableZoom = true; });
    canvas.addEventListener("blur", () => { controls.enableZoom = false; });

    // points
    let cloud = null;
    if (data.count) {
      const geometry = new THREE.BufferGeometry();
      geometry.setAttribute("position", new THREE.BufferAttribute(as(Int16Array, data.xyz), 3, true));
      geometry.setAttribute("color", new THREE.BufferAttribute(bytes(data.colors), 3, true));
      const disc = el("canvas", { width: 32, height: 32 });
      const context = disc.getContext("2d");
      context.fillStyle = "#fff";
      context.beginPath();
      context.arc(16, 16, 15, 0, 7);
      context.fill();
      cloud = new THREE.Points(geometry, new THREE.PointsMaterial({
        size: 2, sizeAttenuation: false, vertexColors: true, map: new THREE.CanvasTexture(disc), alphaTest: 0.5,
      }));
      cloud.scale.setScalar(data.extent);
      cloud.frustumCulled = false;
      scene.add(cloud);
    }

    // cameras
    const cameras = data.cameras;
    const kinds = { registered: "--camera", database: "--dim", "query-high": "--query", "query-low": "--low" };
    const corners = [[-1, -1], [1, -1], [1, 1], [-1, 1]];
    const edges = [0, 1, 0, 2, 0, 3, 0, 4, 1, 2, 2, 3, 3, 4, 4, 1];
    let size = 1, selected = -1;
    const corner = (camera, k) => {
      const depth = data.frustum * size;
      const R = camera.rotation, v = [corners[k][0] * camera.size[0] * depth, corners[k][1] * camera.size[1] * depth, depth];
      return [0, 1, 2].map((r) => camera.centre[r] + R[3 * r] * v[0] + R[3 * r + 1] * v[1] + R[3 * r + 2] * v[2]);
    };
    const frustum = (camera) => [camera.centre, ...[0, 1, 2, 3].map((k) => corner(camera, k))];
    const wires = new THREE.LineSegments(new THREE.BufferGeometry(), new THREE.LineBasicMaterial({ vertexColors: true }));
    wires.frustumCulled = false;
    scene.add(wires);
    function drawCameras() {
      const xyz = new Float32Array(cameras.length * 48), rgbs = new Float32Array(cameras.length * 48);
      cameras.forEach((camera, i) => {
        const five = frustum(camera);
        const colour = new THREE.Color(css(i === selected ? "--ink" : kinds[camera.kind] ?? "--camera"));
        edges.forEach((k, j) => {
          xyz.set(five[k], 48 * i + 3 * j);
          rgbs.set([colour.r, colour.g, colour.b], 48 * i + 3 * j);
        });
      });
      wires.geometry.dispose();
      wires.geometry = new THREE.BufferGeometry();
      wires.geometry.setAttribute("position", new THREE.BufferAttribute(xyz, 3));
      wires.geometry.setAttribute("color", new THREE.BufferAttribute(rgbs, 3));
    }
    // the selected photo on its image plane
    let plane = null;
    let inside = false; // the viewer stands at the selected camera: its photo is translucent
    function drawPhoto() {
      if (plane) { scene.remove(plane); plane.material.map.dispose(); plane.geometry.dispose(); plane = null; }
      const camera = cameras[selected];
      const url = camera && camera.photo !== null ? thumbUrl(camera.photo) : null;
      if (!url || !wires.visible) return;
      const image = new Image();
      const wanted = selected;
      image.onload = () => {
        if (wanted !== selected || !wires.visible) return;
        if (plane) scene.remove(plane);
        const geometry = new THREE.BufferGeometry();
        const quad = [0, 1, 2, 3].map((k) => corner(camera, k));
        geometry.setAttribute("position", new THREE.BufferAttribute(new Float32Array([0, 3, 2, 0, 2, 1].flatMap((k) => quad[k])), 3));
        geometry.setAttribute("uv", new THREE.BufferAttribute(new Float32Array([0, 1, 0, 0, 1, 0, 0, 1, 1, 0, 1, 1]), 2));
        const texture = new THREE.Texture(image);
        texture.needsUpdate = true;
        plane = new THREE.Mesh(geometry, new THREE.MeshBasicMaterial({
          map: texture, side: THREE.DoubleSide, transparent: true, depthWrite: false, opacity: inside ? 0.6 : 0.95,
        }));
        scene.add(plane);
        render();
      };
      image.src = url;
    }

    // Where frames are slow, fewer points are drawn while the viewer moves: the first ones, which
    // have the longest tracks.
    let wanted = data.count, bearable = data.count, moving = false, before = 0;
    let asked = false;
    function render() {
      if (asked) return;
      asked = true;
      requestAnimationFrame((now) => {
        asked = false;
        const gap = now - before;
        before = now;
        if (moving && gap > 60 && gap < 3000) bearable = Math.max(25000, Math.round(bearable / 2));
        if (cloud) cloud.geometry.setDrawRange(0, moving ? Math.min(wanted, bearable) : wanted);
        renderer.render(scene, eye);
      });
    }
    controls.addEventListener("start", () => { moving = true; before = performance.now(); });
    controls.addEventListener("end", () => { moving = false; render(); });
    function resize() {
      const { clientWidth, clientHeight } = stage;
      if (!clientWidth || !clientHeight) return;
      renderer.setSize(clientWidth, clientHeight, false);
      eye.aspect = clientWidth / clientHeight;
      eye.updateProjectionMatrix();
      if (standing) stand(standing);
      render();
    }
    function paint() {
      renderer.setClearColor(new THREE.Color(css("--viewer")));
      drawCameras();
      render();
    }
    const everything = new THREE.Vector3(0, 0, 0);
    let standing = null; // direction of the view selected by a button, until the user moves
    for (const kind of ["wheel", "keydown"]) canvas.addEventListener(kind, () => { standing = null; });
    // a sample of the points that are to be framed; a view must contain it and all cameras
    const framed = [];
    if (cloud) {
      const xyz = cloud.geometry.getAttribute("position");
      const marks = bytes(data.framed), wanted = [];
      marks.forEach((mark, i) => { if (mark) wanted.push(i); });
      const step = Math.max(1, Math.floor(wanted.length / 2000));
      for (let i = 0; i < wanted.length; i += step) framed.push(new THREE.Vector3().fromBufferAttribute(xyz, wanted[i]).multiplyScalar(data.extent));
    }
    function stand(direction) {
      standing = direction;
      inside = false;
      if (plane) plane.material.opacity = 0.95;
      eye.fov = 45;
      eye.updateProjectionMatrix();
      const back = new THREE.Vector3(...direction).normalize();
      const right = new THREE.Vector3(0, 1, 0).cross(back).normalize();
      const up = back.clone().cross(right);
      const turn = (p) => [p.dot(right), p.dot(up), p.dot(back)];
      let seen = framed.map(turn);
      if (seen.length > 50) { // without the outermost 1% on each side
        const limits = [0, 1, 2].map((k) => {
          const sorted = seen.map((p) => p[k]).sort((a, b) => a - b);
          return [sorted[Math.floor(0.01 * sorted.length)], sorted[Math.ceil(0.99 * (sorted.length - 1))]];
        });
        seen = seen.filter((p) => limits.every(([low, high], k) => p[k] >= low && p[k] <= high));
      }
      const stray = cameras.length > 50 ? 4 : Infinity; // with many cameras single outliers are ignored
      const every = Math.max(1, Math.floor(cameras.length / 2000));
      for (let i = 0; i < cameras.length; i += every) {
        const camera = cameras[i];
        if (Math.hypot(...camera.centre) < stray) seen.push(...frustum(camera).map((p) => turn(new THREE.Vector3(...p))));
      }
      if (!seen.length) seen.push([-1, -1, 0], [1, 1, 0]);
      const half = [0, Math.tan(eye.fov * Math.PI / 360) * 0.94];
      half[0] = half[1] * eye.aspect;
      let distance = 0.1 + Math.max(...seen.map((p) => p[2]));
      for (const k of [0, 1]) {
        const high = Math.max(...seen.map((p) => p[k] + half[k] * p[2]));
        const low = Math.min(...seen.map((p) => p[k] - half[k] * p[2]));
        distance = Math.max(distance, (high - low) / 2 / half[k]);
      }
      const shift = [0, 1].map((k) => { // the same margin on both sides, by bisection
        let low = Math.min(...seen.map((p) => p[k])), high = Math.max(...seen.map((p) => p[k]));
        for (let i = 0; i < 30; i++) {
          const place = (low + high) / 2;
          const shown = seen.map((p) => (p[k] - place) / (distance - p[2]));
          if (Math.max(...shown) + Math.min(...shown) > 0) low = place;
          else high = place;
        }
        return low;
      });
      const middle = seen.map((p) => p[2]).sort((a, b) => a - b)[seen.length >> 1];
      controls.target.set(0, 0, 0).addScaledVector(right, shift[0]).addScaledVector(up, shift[1]).addScaledVector(back, middle);
      eye.position.copy(controls.target).addScaledVector(back, distance - middle);
      controls.update();
      render();
    }

    // hovering and clicking: the camera whose centre is nearest on the screen
    const probe = new THREE.Vector3();
    function nearest(x, y, within) {
      if (!wires.visible) return -1;
      const box = canvas.getBoundingClientRect();
      let found = -1, best = within;
      cameras.forEach((camera, i) => {
        const a = corner(camera, 0), c = corner(camera, 2);
        probe.set(...[0, 1, 2].map((k) => (camera.centre[k] + (a[k] + c[k]) / 2) / 2)).project(eye);
        if (probe.z > 1) return;
        const distance = Math.hypot(box.left + (probe.x + 1) / 2 * box.width - x, box.top + (1 - probe.y) / 2 * box.height - y);
        if (distance < best) { best = distance; found = i; }
      });
      return found;
    }
    let down = null;
    canvas.addEventListener("pointerdown", (event) => { down = [event.clientX, event.clientY]; hideTip(); });
    canvas.addEventListener("pointerup", (event) => {
      if (down && Math.hypot(event.clientX - down[0], event.clientY - down[1]) < 5) {
        const i = nearest(event.clientX, event.clientY, event.pointerType === "touch" ? 28 : 18);
        if (i >= 0) choose(i);
      }
      down = null;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (event.buttons) { // dragged by more than the jitter of a click
        if (down && Math.hypot(event.clientX - down[0], event.clientY - down[1]) >= 5) standing = null;
        return;
      }
      if (event.pointerType === "touch") return;
      const i = nearest(event.clientX, event.clientY, 18);
      canvas.style.cursor = i >= 0 ? "pointer" : "";
      if (i >= 0) showTip(cameras[i].name, event.clientX, event.clientY);
      else hideTip();
    });
    canvas.addEventListener("pointerleave", hideTip);

    function choose(i) {
      selected = i;
      inside = false;
      drawCameras();
      drawPhoto();
      const panel = $("panel");
      const box = $("viewer");
      if (i < 0) {
        panel.hidden = true;
        box.classList.remove("open");
      } else {
        const camera = cameras[i];
        panel.replaceChildren(
          el("button", { class: "close", type: "button", "aria-label": "Close", onclick: () => choose(-1) }, "✕"),
          camera.photo === null ? el("div", { class: "name" }, camera.name) : photoDetails(camera.photo, "panel"));
        panel.hidden = false;
        box.classList.add("open");
        panel.scrollTop = 0;
      }
      resize();
    }
    const ofPhoto = new Map(cameras.map((camera, i) => [camera.photo, i]));
    function lookFrom(photo) {
      inside = true;
      standing = null;
      drawPhoto();
      const camera = cameras[ofPhoto.get(photo)];
      const R = camera.rotation;
      const ahead = new THREE.Vector3(R[2], R[5], R[8]);
      const centre = new THREE.Vector3(...camera.centre);
      eye.position.copy(centre);
      const far = Math.max(0.2, centre.distanceTo(everything));
      controls.target.copy(centre).addScaledVector(ahead, far);
      eye.fov = 2 * Math.atan(Math.max(camera.size[1], camera.size[0] / eye.aspect)) * 180 / Math.PI;
      eye.updateProjectionMatrix();
      controls.update();
      render();
    }

    const bind = (id, work) => { if ($(id)) $(id).addEventListener("input", work); };
    bind("point-size", () => { if (cloud) cloud.material.size = Number($("point-size").value) * renderer.getPixelRatio(); render(); });
    bind("camera-size", () => { size = 1.6 ** Number($("camera-size").value); drawCameras(); drawPhoto(); render(); });
    bind("show-cameras", () => { wires.visible = $("show-cameras").checked; drawPhoto(); render(); });
    const tracks = $("tracks");
    const trackText = (wanted, count) => `${wanted} photos: ${fmt(count)} points`;
    if (tracks && data.tracks.length > 1) {
      const least = data.tracks[data.tracks.length - 1][0];
      tracks.min = least;
      tracks.max = Math.min(least + 8, data.tracks[0][0]);
      tracks.value = least;
      tracks.addEventListener("input", () => {
        const least = Number(tracks.value);
        const count = Math.max(0, ...data.tracks.filter(([t]) => t >= least).map(([, c]) => c));
        wanted = count;
        $("tracks-text").textContent = trackText(least, count);
        render();
      });
      $("tracks-text").textContent = trackText(least, data.count);
    } else if (tracks) tracks.closest("label").hidden = true;
    for (const button of document.querySelectorAll("[data-view]")) {
      button.addEventListener("click", () => stand(VIEWS[button.dataset.view]));
    }
    if (narrow.matches) $("point-size").value = 1.5;
    if (cloud) cloud.material.size = Number($("point-size").value) * renderer.getPixelRatio();

    const words = { registered: "photos in the model", database: "photos of the model", "query-high": "queries, high confidence", "query-low": "queries, low confidence" };
    const key = $("stage-key");
    const paintKey = () => {
      key.replaceChildren();
      const present = Object.keys(words).filter((kind) => cameras.some((camera) => camera.kind === kind));
      if (present.length < 2) return;
      for (const kind of present) {
        const mark = el("i");
        mark.style.background = css(kinds[kind]);
        key.append(el("span", {}, mark, words[kind]));
      }
    };
    controls.addEventListener("change", render);
    dark.addEventListener("change", () => { paint(); paintKey(); });
    resize();
    paint();
    paintKey();
    stand(VIEWS.overview);
    new ResizeObserver(resize).observe(stage);
    return {
      has: (photo) => ofPhoto.has(photo),
      select: (photo) => choose(ofPhoto.get(photo)),
      lookFrom,
      // for tests: position of a camera on the screen
      where: (photo) => {
        const camera = cameras[ofPhoto.get(photo)];
        const a = corner(camera, 0), c = corner(camera, 2);
        const box = canvas.getBoundingClientRect();
        probe.set(...[0, 1, 2].map((k) => (camera.centre[k] + (a[k] + c[k]) / 2) / 2)).project(eye);
        return [box.left + (probe.x + 1) / 2 * box.width, box.top + (1 - probe.y) / 2 * box.height];
      },
      draw: () => renderer.render(scene, eye),
      renderer,
    };
  }

  let viewer = null;
  viewer = makeViewer();
  for (const section of [queriesSection, photosSection, graphSection, gallerySection]) section();
  window.edmReport = { viewer, run };
  document.documentElement.dataset.ready = "yes";
})();
