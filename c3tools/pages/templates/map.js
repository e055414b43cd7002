// The map of a gap report: one dot a row, the horizontal axis along the modality gap, the vertical the first principal
// direction of the collapsed rows. The slider subtracts a share of each modality's own mean, which is what Collapse does.
// gap_map.py writes the data: {modalities: [{name, shift, x, y, label, groups, photo}], pairs: [[first, second]], gap}.
"use strict";
for (const root of document.querySelectorAll(".gap-map")) {
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const find = (name) => root.querySelector(`[name=${name}]`);
  const canvas = root.querySelector("canvas"), pen = canvas.getContext("2d");
  const card = root.querySelector(".card"), spoken = root.querySelector("[aria-live]");
  const slider = find("collapse"), words = find("words"), colours = find("colours"), play = find("play");
  const calm = matchMedia("(prefers-reduced-motion: reduce)");

  // x and y of a dot are those of the collapsed row; partners are the dots of its pairs
  const dots = data.modalities.flatMap((modality, side) => modality.x.map((x, at) => ({
    side, at, x, y: modality.y[at], label: modality.label[at],
    groups: Object.fromEntries(Object.entries(modality.groups).map(([name, values]) => [name, values[at]])),
    photo: modality.photo ? modality.photo[at] : null,
  })));
  const starts = data.modalities.map((_, side) => dots.findIndex((dot) => dot.side === side));
  for (const [a, b] of data.pairs) {
    const pair = [dots[starts[0] + a], dots[starts[1] + b]];
    pair.forEach((dot, side) => (dot.partners ||= []).push(pair[1 - side]));
  }

  // what the dots can be coloured by: their modality, split, or a column that has more than one value
  const columns = [...new Set(data.modalities.flatMap((modality) => Object.keys(modality.groups)))];
  const varied = columns.filter((name) => new Set(dots.map((dot) => dot.groups[name]).filter((value) => value != null)).size > 1);
  colours.replaceChildren(...["modality", ...varied].map((name) => new Option(name, name)));

  let collapse = Number(slider.value) / 100; // 0: raw, 1: collapsed
  let shown = null; // the dot that the card describes
  let matching = null; // a set of dots, or null if no word is searched
  let frame = 0, width = 0, height = 0, scale = 1, middle = [0, 0], palette = {};

  const place = (dot) => [
    middle[0] + scale * (dot.x + (1 - collapse) * data.modalities[dot.side].shift[0]),
    middle[1] - scale * (dot.y + (1 - collapse) * data.modalities[dot.side].shift[1]),
  ];

  // layout ----------------------------------------------------------------------------------------------------------
  function resize() {
    const box = canvas.getBoundingClientRect(), ratio = window.devicePixelRatio || 1;
    [width, height] = [box.width, box.height];
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const ends = [Infinity, -Infinity, Infinity, -Infinity];
    for (const dot of dots) {
      for (const share of [0, 1]) {
        const [dx, dy] = data.modalities[dot.side].shift;
        const x = dot.x + share * dx, y = dot.y + share * dy;
        ends[0] = Math.min(ends[0], x); ends[1] = Math.max(ends[1], x);
        ends[2] = Math.min(ends[2], y); ends[3] = Math.max(ends[3], y);
      }
    }
    const margin = 18;
    scale = Math.min((width - 2 * margin) / (ends[1] - ends[0] || 1), (height - 2 * margin) / (ends[3] - ends[2] || 1));
    middle = [width / 2 - scale * (ends[0] + ends[1]) / 2, height / 2 + scale * (ends[2] + ends[3]) / 2];
    recolour();
  }

  function recolour() {
    const style = getComputedStyle(root);
    palette = Object.fromEntries(["first", "second", "third", "fourth", "muted", "rule", "ink", "paper"]
      .map((role) => [role, style.getPropertyValue(`--${role}`).trim()]));
    redraw();
  }

  // drawing ---------------------------------------------------------------------------------------------------------
  const hues = () => [palette.first, palette.second, palette.third, palette.fourth, palette.muted];

  function groupNames() {
    if (colours.value === "modality") return data.modalities.map((modality) => modality.name);
    const counted = new Map();
    for (const dot of dots) {
      const name = dot.groups[colours.value];
      if (name != null) counted.set(name, (counted.get(name) || 0) + 1);
    }
    return [...counted.keys()].sort((a, b) => counted.get(b) - counted.get(a) || (a < b ? -1 : 1));
  }

  function groupOf(dot, names) {
    const number = colours.value === "modality" ? dot.side : names.indexOf(dot.groups[colours.value]);
    return number < 0 || number >= hues().length - 1 ? hues().length - 1 : number;
  }

  function draw() {
    frame = 0;
    pen.clearRect(0, 0, width, height);
    if (shown) drawPartners();
    const names = groupNames(), size = dots.length > 1500 ? 2 : 3;
    const layers = hues().map(() => []), faint = hues().map(() => []);
    for (const dot of dots) (matching && !matching.has(dot) ? faint : layers)[groupOf(dot, names)].push(dot);
    for (const [alpha, group, radius] of [[matching ? 0.12 : 0, faint, size], [0.75, layers, matching ? size + 1.5 : size]]) {
      pen.globalAlpha = alpha;
      // the smallest group last, so that it is not hidden
      const order = group.map((_, number) => number).sort((a, b) => group[b].length - group[a].length);
      for (const number of order) {
        pen.fillStyle = hues()[number];
        pen.beginPath();
        for (const dot of group[number]) {
          const [x, y] = place(dot);
          // modalities differ by shape too: circles and squares
          if (dot.side === 0) { pen.moveTo(x + radius, y); pen.arc(x, y, radius, 0, 7); } else pen.rect(x - radius, y - radius, 2 * radius, 2 * radius);
        }
        pen.fill();
      }
    }
    pen.globalAlpha = 1;
    if (shown) ring(shown);
  }

  function ring(dot) {
    const [x, y] = place(dot);
    pen.strokeStyle = palette.ink; pen.lineWidth = 2;
    pen.beginPath(); pen.arc(x, y, 7, 0, 7); pen.stroke();
  }

  function drawPartners() {
    const [x, y] = place(shown);
    pen.strokeStyle = palette.ink; pen.lineWidth = 1.2;
    pen.beginPath();
    for (const partner of shown.partners || []) { pen.moveTo(x, y); pen.lineTo(...place(partner)); }
    pen.stroke();
  }

  function redraw() { frame ||= requestAnimationFrame(draw); if (shown) putCard(); }

  function legend() {
    const names = groupNames(), list = root.querySelector(".legend");
    list.replaceChildren(...names.slice(0, hues().length - 1).map((name, number) => {
      const item = document.createElement("li");
      item.style.setProperty("--hue", `var(--${["first", "second", "third", "fourth"][number]})`);
      item.className = colours.value === "modality" && number === 1 ? "square" : "round";
      item.textContent = name;
      return item;
    }));
    if (names.length >= hues().length) list.append(Object.assign(document.createElement("li"), { textContent: `${names.length - hues().length + 1} others` }));
  }

  // one dot described -----------------------------------------------------------------------------------------------
  function describe(dot, aloud = false) {
    shown = dot;
    card.hidden = !dot;
    if (dot) {
      const near = dot.partners || [], texts = near.slice(0, 5).map((partner) => partner.label);
      const photo = dot.photo || near.map((partner) => partner.photo).find(Boolean);
      card.replaceChildren();
      if (photo) card.append(Object.assign(new Image(), { src: photo, alt: "" }));
      for (const text of [dot.label, ...texts]) card.append(Object.assign(document.createElement("p"), { textContent: text }));
      const name = data.modalities[dot.side].name;
      card.append(Object.assign(document.createElement("small"), { textContent: `${name}, ${near.length} partner${near.length === 1 ? "" : "s"} on the map` }));
      if (aloud) spoken.textContent = `${name}: ${dot.label}`;
    }
    redraw();
  }

  function putCard() {
    const [x, y] = place(shown), box = card.getBoundingClientRect();
    card.style.left = `${Math.max(0, Math.min(width - box.width, x + (x > width / 2 ? -box.width - 14 : 14)))}px`;
    card.style.top = `${Math.max(0, Math.min(height - box.height, y - box.height / 2))}px`;
  }

  function nearest(event) {
    const box = canvas.getBoundingClientRect(), reach = event.pointerType === "touch" ? 24 : 12;
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    let best = null, least = reach * reach;
    for (const dot of dots) {
      if (matching && !matching.has(dot)) continue;
      const [x, y] = place(dot), distance = (x - px) ** 2 + (y - py) ** 2;
      if (distance < least) [best, least] = [dot, distance];
    }
    return best;
  }

  // Arrow keys go to the nearest dot in a direction; Home shows the first, Escape none.
  function step(event) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const open = dots.filter((dot) => !matching || matching.has(dot));
    if (event.key === "Escape") describe(null);
    else if (event.key === "Home" || (way && !shown)) describe(open[0] || null, true);
    else if (way) {
      const [x, y] = place(shown);
      let best = null, least = Infinity;
      for (const dot of open) {
        const [u, v] = place(dot), along = (u - x) * way[0] + (v - y) * way[1], aside = Math.abs((u - x) * way[1]) + Math.abs((v - y) * way[0]);
        if (dot !== shown && along > 0.5 && along + 2 * aside < least) [best, least] = [dot, along + 2 * aside];
      }
      if (best) describe(best, true);
    } else return;
    event.preventDefault();
  }

  // controls --------------------------------------------------------------------------------------------------------
  function setCollapse(share) {
    collapse = share;
    slider.value = String(Math.round(100 * share));
    slider.setAttribute("aria-valuetext", share === 0 ? "raw" : share === 1 ? "collapsed" : `${Math.round(100 * share)}% collapsed`);
    root.querySelector("output").textContent = `distance between the means: ${((1 - share) * data.gap).toFixed(2)}`;
    play.textContent = share < 1 ? "Collapse" : "Back to raw";
    redraw();
  }

  let moving = 0;
  function animate() {
    const from = collapse, to = from < 1 ? 1 : 0, started = performance.now();
    cancelAnimationFrame(moving);
    if (calm.matches) return setCollapse(to);
    const tick = (now) => {
      const t = Math.min(1, (now - started) / 1400), eased = t * t * (3 - 2 * t);
      setCollapse(from + (to - from) * eased);
      if (t < 1) moving = requestAnimationFrame(tick);
    };
    moving = requestAnimationFrame(tick);
  }

  function search() {
    const wanted = words.value.trim().toLowerCase();
    matching = wanted ? new Set(dots.filter((dot) => dot.label.toLowerCase().includes(wanted))) : null;
    if (matching) for (const dot of [...matching]) (dot.partners || []).filter((partner) => partner.photo).forEach((partner) => matching.add(partner));
    if (shown && matching && !matching.has(shown)) describe(null);
    root.querySelector(".found").textContent = matching ? `${matching.size} of ${dots.length} dots` : "";
    redraw();
  }

  slider.addEventListener("input", () => { cancelAnimationFrame(moving); setCollapse(Number(slider.value) / 100); });
  play.addEventListener("click", animate);
  words.addEventListener("input", search);
  colours.addEventListener("change", () => { legend(); redraw(); });
  canvas.addEventListener("pointermove", (event) => event.pointerType !== "touch" && describe(nearest(event)));
  canvas.addEventListener("pointerleave", (event) => event.pointerType !== "touch" && describe(null));
  canvas.addEventListener("pointerdown", (event) => describe(nearest(event)));
  canvas.addEventListener("keydown", step);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
  new ResizeObserver(resize).observe(canvas);
  legend();
  setCollapse(collapse);
}
