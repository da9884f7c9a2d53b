"use strict";
// The explorer. Text reaches the page as textContent, never as HTML: names are data.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PER_PAGE = 48;
  const OUTCOMES = {
    "certified-right": { name: "certified and right", isCertified: true, isRight: true },
    "right": { name: "right, not certified", isCertified: false, isRight: true },
    "certified-wrong": { name: "certified, wrong", isCertified: true, isRight: false },
    "wrong": { name: "wrong, not certified", isCertified: false, isRight: false },
  };
  const [height, width] = data.imageSize;
  const isMap = !data.windows.choices && data.windows.rows.length > 1 && data.windows.columns.length > 1;
  const state = {
    voting: data.main,
    side: data.sides.indexOf(data.focus), // an index into data.sides
    class: "all",
    attack: "all",
    order: "turns",
    outcomes: new Set(Object.keys(OUTCOMES)),
    page: 0,
    selected: null,
  };
  const $ = (id) => document.getElementById(id);

  // ---- What is known of an image --------------------------------------------------

  const voting = () => data.votings[state.voting];
  const side = () => data.sides[state.side];
  const margin = (i) => voting().margin[i][state.side];
  const isRight = (i) => voting().prediction[i] === data.labels[i];

  function outcome(i) {
    const isCertified = margin(i) >= 0;
    if (isRight(i)) return isCertified ? "certified-right" : "right";
    return isCertified ? "certified-wrong" : "wrong";
  }

  // The duel that the worst placement decides, and who is touched there.
  function duel(i) {
    const rival = voting().rival[i][state.side];
    const bytes = atob(voting().duels[i][rival]);
    const preferences = Int8Array.from(bytes, (c) => c.charCodeAt(0));
    const corner = voting().corner[i][state.side];
    const [row, column] = [Math.floor(corner / width), corner % width];
    return { rival, preferences, row, column, touched: touched(row, column, [side(), side()]) };
  }

  // An ablation is touched iff the patch meets a window that it keeps.
  function touched(row, column, [high, wide]) {
    const { rows, columns, choices } = data.windows;
    const meets = (from, size) => (band) => band.some(([a, b]) => a < from + size && from < b);
    const rowHit = rows.map(meets(row, high));
    const columnHit = columns.map(meets(column, wide));
    const isHit = (w) => rowHit[Math.floor(w / columns.length)] && columnHit[w % columns.length];
    if (choices) return choices.map((kept) => kept.some(isHit));
    return Array.from({ length: rows.length * columns.length }, (_, w) => isHit(w));
  }

  // What is left of the duel, as the certificate counts it: in units of 1 / limit.
  function account(i) {
    const { rival, preferences, touched } = duel(i);
    let kept = 0, given = 0, count = 0;
    preferences.forEach((g, p) => {
      if (touched[p]) { given += g; count += 1; } else kept += g;
    });
    const tie = rival < voting().prediction[i] ? -1 : 0;
    return { kept, given, count, tie, left: kept - voting().limit * count + tie };
  }

  // Double masking against the square of the slider; null where that is too large.
  const masking = () => data.masking.squares[state.side];

  // The answer's lead over its rival without the two masks that harm it most.
  function worstPair(i) {
    const { answer, rival, first, second, masks } = masking();
    const bytes = Uint8Array.from(atob(data.masking.leads[i][`${answer[i]} ${rival[i]}`]), (c) => c.charCodeAt(0));
    const leads = Array.from(new Int16Array(bytes.buffer)); // little-endian, as browsers are
    const bits = atob(masks);
    const perRow = Math.ceil(leads.length / 8);
    const isIn = (mask, p) => (bits.charCodeAt(mask * perRow + (p >> 3)) >> (7 - (p & 7))) & 1;
    const out = leads.map((_, p) => Boolean(isIn(first[i], p) || isIn(second[i], p)));
    const left = leads.map((lead, p) => (out[p] ? 0 : lead));
    return {
      answer: answer[i], rival: rival[i], out, left,
      pair: [...new Set([first[i], second[i]])],
      numMasks: bits.length / perRow,
      numLeft: out.filter((isOut) => !isOut).length,
      sum: left.reduce((one, two) => one + two, 0),
    };
  }

  // ---- Small helpers --------------------------------------------------------------

  function element(name, attributes = {}, ...children) {
    const isSvg = ["svg", "path", "rect", "line", "pattern", "defs"].includes(name);
    const made = isSvg
      ? document.createElementNS("http://www.w3.org/2000/svg", name)
      : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }
  const percent = (count) => (100 * count / data.numImages).toFixed(1);
  const interval = ([, low, high]) => element("span", { class: "interval" },
    `${(100 * low).toFixed(1)} to ${(100 * high).toFixed(1)}`);
  const signed = (value, digits) =>
    (value > 0 ? "+" : value < 0 ? "\u2212" : "") + Math.abs(value).toFixed(digits);
  const votes = (units) => signed(units / voting().limit, voting().limit > 1 ? 2 : 0);
  const nats = (units) => Math.abs(units / data.masking.perNat).toFixed(3);
  const square = (m) => `${m}x${m}`;
  const byName = (k) => data.classes[k];

  function badge(key) {
    const { isCertified, isRight } = OUTCOMES[key];
    const kind = (isCertified ? " certified" : "") + (isRight ? "" : " wrong");
    return element("span", { class: "badge" + kind, "aria-hidden": "true" }, isRight ? "\u2713" : "\u2717");
  }

  // ---- Drawing --------------------------------------------------------------------

  function strip(i) {
    const { preferences, touched } = duel(i);
    return drawStrip(preferences, touched, voting().limit);
  }

  function drawStrip(preferences, touched, limit) {
    const { rows, columns } = data.windows;
    return isMap ? mapStrip(preferences, touched, limit, rows.length, columns.length)
      : barStrip(preferences, touched, limit);
  }

  // Bars: up for the prediction, down for the rival; touched ablations are shaded.
  function barStrip(preferences, touched, limit) {
    let [up, down, shade] = ["", "", ""];
    preferences.forEach((g, p) => {
      const size = (Math.abs(g) / limit) * 0.96;
      if (touched[p]) shade += `M${p} -1h1v2h-1z`;
      if (g > 0) up += `M${p + 0.12} 0v${-size}h.76v${size}z`;
      if (g < 0) down += `M${p + 0.12} 0v${size}h.76v${-size}z`;
    });
    return element("svg", {
      class: "strip", viewBox: `0 -1 ${preferences.length} 2`, preserveAspectRatio: "none", "aria-hidden": "true",
    }, element("path", { class: "touched", d: shade }), element("path", { class: "up", d: up }),
    element("path", { class: "down", d: down }),
    element("line", { class: "axis", x1: 0, x2: preferences.length, y1: 0, y2: 0 }));
  }

  // Squares: full for the prediction, hollow for the rival, as large as the preference;
  // touched ablations are outlined.
  function mapStrip(preferences, touched, limit, numRows, numColumns) {
    let [up, down, edge] = ["", "", ""];
    const isTouched = (x, y) =>
      x >= 0 && y >= 0 && x < numColumns && y < numRows && touched[y * numColumns + x];
    preferences.forEach((g, p) => {
      const [x, y] = [p % numColumns, Math.floor(p / numColumns)];
      const size = 0.92 * Math.sqrt(Math.abs(g) / limit);
      const box = (s, sweep) => {
        const [a, b] = [(x + (1 - s) / 2).toFixed(2), (y + (1 - s) / 2).toFixed(2)];
        const t = s.toFixed(2);
        return sweep ? `M${a} ${b}h${t}v${t}h-${t}z` : `M${a} ${b}v${t}h${t}v-${t}z`;
      };
      if (touched[p]) { // the outline of what is touched
        if (!isTouched(x - 1, y)) edge += `M${x} ${y}v1`;
        if (!isTouched(x + 1, y)) edge += `M${x + 1} ${y}v1`;
        if (!isTouched(x, y - 1)) edge += `M${x} ${y}h1`;
        if (!isTouched(x, y + 1)) edge += `M${x} ${y + 1}h1`;
      }
      if (g > 0) up += box(size, true);
      if (g < 0) down += box(size, true) + box(size * 0.55, false);
    });
    return element("svg", {
      class: "strip map", viewBox: `0 0 ${numColumns} ${numRows}`, "aria-hidden": "true",
    }, element("path", { class: "up", d: up }), element("path", { class: "down", d: down }),
    ...["edge halo", "edge"].map((kind) => element("path", { class: kind, d: edge })));
  }

  const picture = (i, ...shapes) => pictureOf("clean", data.atlas, data.ids.length, i, shapes);

  // One of so many pictures that lie side by side in a sheet, and what is drawn on it.
  function pictureOf(sheet, atlas, count, i, shapes) {
    const thumb = element("span", { class: `thumb ${sheet}` });
    if (atlas) {
      const { columns, cell, size } = atlas;
      const rows = Math.ceil(count / columns);
      // Percentages place a background by what is left over: 0 % first, 100 % last.
      const place = (k, total, part) => (100 * k * part[0]) / (total * part[0] - part[1]) || 0;
      const x = place(i % columns, columns, [cell[1], size[1]]);
      const y = place(Math.floor(i / columns), rows, [cell[0], size[0]]);
      thumb.style.backgroundPosition = `${x}% ${y}%`;
    }
    const made = element("span", { class: "picture" }, thumb,
      element("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, ...shapes));
    made.style.aspectRatio = `${width} / ${height}`;
    return made;
  }

  function largestSquare(i) {
    const m = voting().largest[i];
    if (!m) return [];
    const place = { x: (width - m) / 2, y: (height - m) / 2, width: m, height: m };
    return ["square", "square top"].map((kind) => element("rect", { class: kind, ...place }));
  }

  function worstPatch(i) {
    const { row, column } = duel(i);
    const place = { x: column, y: row, width: side(), height: side() };
    const hatch = element("pattern", {
      id: "hatch", width: 1, height: 1, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)",
    }, element("rect", { width: 0.35, height: 1, fill: "#fff", "fill-opacity": 0.7 }));
    return [element("defs", {}, hatch), ...reach(row, column),
      ...["patch", "patch top"].map((kind) => element("rect", { class: kind, ...place }))];
  }

  // The pixels that touched windows see, where an ablation keeps one window.
  function reach(row, column) {
    const { rows, columns, choices } = data.windows;
    if (choices) return [];
    const seen = (bands, from) => {
      const hit = bands.filter((band) => band.some(([a, b]) => a < from + side() && from < b)).flat();
      const runs = [];
      for (const [a, b] of hit.sort((x, y) => x[0] - y[0])) {
        const last = runs.at(-1);
        if (last && a <= last[1]) last[1] = Math.max(last[1], b); else runs.push([a, b]);
      }
      return runs;
    };
    return seen(rows, row).flatMap(([top, bottom]) => seen(columns, column).map(([left, right]) =>
      element("rect", { class: "reach", x: left, y: top, width: right - left, height: bottom - top })));
  }

  // ---- The parts of the page ------------------------------------------------------

  function candidates() {
    return data.ids.map((_, i) => i).filter(
      (i) => (state.class === "all" || data.labels[i] === Number(state.class))
        && (state.attack === "all" || attacks.isLike(i, state.attack)));
  }

  function matches() {
    const found = candidates().filter((i) => state.outcomes.has(outcome(i)));
    if (state.order === "turns") {
      const seen = {}, turn = {};
      for (const i of found) turn[i] = seen[data.labels[i]] = (seen[data.labels[i]] ?? -1) + 1;
      found.sort((a, b) => turn[a] - turn[b] || data.labels[a] - data.labels[b]);
    } else if (state.order !== "data") {
      const sign = state.order === "least" ? 1 : -1;
      found.sort((a, b) => sign * (margin(a) - margin(b)) || a - b);
    }
    return found;
  }

  function maskingRow() {
    const name = element("th", { scope: "row" }, "double masking");
    const found = masking();
    if (!found) return element("tr", {}, name, element("td", { class: "text", colspan: 4 }, "too large for it"));
    const { clean, certified, wrong, detected } = found;
    return element("tr", {}, name,
      element("td", {}, percent(clean[0]), interval(clean)),
      element("td", {}, element("strong", {}, percent(certified[0])), interval(certified)),
      element("td", {}, percent(wrong[0])), element("td", {}, percent(detected[0])));
  }

  function showTable() {
    const body = document.querySelector("#live tbody");
    body.replaceChildren(...Object.entries(data.votings).map(([name, v]) => {
      const { certified, wrong } = v.squares[state.side];
      return element("tr", {},
        element("th", { scope: "row" }, name.replace("_", " ")),
        element("td", {}, percent(v.clean[0]), interval(v.clean)),
        element("td", {}, element("strong", {}, percent(certified[0])), interval(certified)),
        element("td", {}, percent(wrong[0])), element("td", {}));
    }), maskingRow());
    const text = `${side()} by ${side()} pixels`;
    $("side-text").textContent = square(side());
    $("side").setAttribute("aria-valuetext", text);
    const counts = {};
    for (const i of candidates()) counts[outcome(i)] = (counts[outcome(i)] || 0) + 1;
    for (const key of Object.keys(OUTCOMES)) {
      $(`count-${key}`).textContent = (counts[key] || 0).toLocaleString("en");
    }
  }

  function card(i) {
    const key = outcome(i);
    const [label, prediction] = [byName(data.labels[i]), byName(voting().prediction[i])];
    const text = isRight(i) ? label : `${label} \u2192 ${prediction}`;
    const made = element("button", {
      type: "button", class: "card", "data-image": i, "aria-pressed": String(i === state.selected),
      "aria-label": `${data.ids[i]}: ${text}; ${OUTCOMES[key].name}; largest certified square ` +
        `${voting().largest[i]}`,
    }, picture(i, ...largestSquare(i)), strip(i),
    element("span", { class: "line" }, badge(key), element("span", { class: "name" }, text)));
    made.title = isRight(i) ? label : `${label}, predicted ${prediction}`;
    return made;
  }

  function showGallery() {
    const found = matches();
    const lastPage = Math.max(0, Math.ceil(found.length / PER_PAGE) - 1);
    state.page = Math.min(state.page, lastPage);
    const from = state.page * PER_PAGE;
    const shown = found.slice(from, from + PER_PAGE);
    const focused = document.activeElement?.dataset?.image;
    $("gallery").replaceChildren(...shown.map(card));
    if (focused !== undefined) $("gallery").querySelector(`[data-image="${focused}"]`)?.focus();
    $("status").textContent = found.length
      ? `${from + 1}\u2013${from + shown.length} of ${found.length.toLocaleString("en")} ${found.length === 1 ? "image" : "images"}`
      : "no image is like that";
    $("previous").disabled = state.page === 0;
    $("next").disabled = state.page === lastPage;
  }

  function showDetail() {
    const panel = $("detail");
    const i = state.selected;
    panel.hidden = i === null;
    if (i === null) return;
    const key = outcome(i);
    const { rival, row, column } = duel(i);
    const { kept, given, count, tie, left } = account(i);
    const [label, prediction] = [byName(data.labels[i]), byName(voting().prediction[i])];
    const { rows, columns, choices } = data.windows;
    const close = element("button", { type: "button", class: "close", "aria-label": "Close" }, "\u00d7");
    close.addEventListener("click", deselect);
    const line = (name, value, kind = "") => element("tr", { class: kind },
      element("td", {}, name), element("td", {}, value));
    const total = choices ? choices.length : rows.length * columns.length;
    const axis = choices ? ["first ablation", "last"]
      : isMap ? ["by first kept row (down) and column (right)", ""]
        : columns.length > 1 ? ["first kept column 0", String(width - 1)] : ["first kept row 0", String(height - 1)];
    panel.replaceChildren(close,
      element("h3", {}, badge(key), OUTCOMES[key].name),
      element("p", { class: "small" }, `by ${state.voting.replace("_", " ")} votes`),
      element("p", { class: "small id" }, data.ids[i]),
      element("dl", { class: "names" }, ...Object.entries({
        label, prediction, "largest certified": voting().largest[i] ? square(voting().largest[i]) : "none",
      }).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
      element("div", { class: "pictures" }, picture(i, ...worstPatch(i))),
      element("p", { class: "small" }, `The worst ${square(side())} patch has its upper left corner at ` +
        `row ${row}, column ${column} (hatched). It touches ${count} of ${total} ablations` +
        `${choices ? "" : ", which see the light region"}; they are ${isMap ? "outlined" : "shaded"} below.`),
      strip(i),
      element("div", { class: "ends" }, element("span", {}, axis[0]), element("span", {}, axis[1])),
      element("p", { class: "small" }, "What each ablation prefers: ",
        element("span", { class: "for" }, prediction), isMap ? " (full) or " : " (up) or ",
        element("span", { class: "against" }, byName(rival)), isMap ? " (hollow)." : " (down)."),
      element("table", {}, element("tbody", {},
        line(`from the ${total - count} ablations out of reach`, votes(kept)),
        line(`from the ${count} touched, if all turn (they give ${votes(given)} now)`, votes(-voting().limit * count)),
        ...(tie ? [line(`a tie goes to ${byName(rival)}, the smaller index`, votes(tie))] : []),
        line("margin", votes(left), "sum"))),
      element("p", { class: "small" }, left >= 0
        ? "Not negative: no content of the patch, here or anywhere, changes the prediction."
        : voting().limit > 1
          ? `Negative: a patch there may turn it into ${byName(rival)}.`
          : `Negative: if the touched ablations turn, it becomes ${byName(rival)}.`),
      ...askedDetail(i),
      ...maskingDetail(i, axis),
      ...attacks.detail(i, axis));
  }

  // How far down the label can be pushed, and what an alarm does, of each patch asked.
  function askedDetail(i) {
    const { asked } = voting();
    if (!asked.length) return [];
    const [hasRanks, rates] = ["rank" in asked[0], Object.keys(asked[0].alarms ?? {})];
    const head = ["patch", ...(hasRanks ? ["rank of the label"] : []),
      ...rates.map((rate) => `alarm (${rate})`)];
    const body = asked.map((one) => [one.attack,
      ...(hasRanks ? [`${one.rank[i]}, at worst ${one.worstRank[i]}`] : []),
      ...rates.map((rate) => data.alarms[one.alarms[rate][i]])]);
    const cells = (tag, row) => element("tr", {}, ...row.map((text) => element(tag, {}, text)));
    return [element("h4", {}, "Ranks and alarms"),
      element("table", { class: "asked" }, element("thead", {}, cells("th", head)),
        element("tbody", {}, ...body.map((row) => cells("td", row))))];
  }

  // What double masking made for this square answers, and what is left at its worst.
  function maskingDetail(i, axis) {
    const title = element("h4", {}, `Double masking, made for ${square(side())}`);
    const small = (...children) => element("p", { class: "small" }, ...children);
    const found = masking();
    if (!found) return [title, small("This square is too large for it: two masks leave no ablation to look at.")];
    const { answer, rival, out, left, pair, numMasks, numLeft, sum } = worstPair(i);
    const [own, other] = [byName(answer), byName(rival)];
    const isBroken = found.margin[i] < 0;
    const isCertified = Boolean(found.isCertified[i]);
    const highest = Math.max(1, ...left.map(Math.abs));
    return [title,
      element("dl", { class: "names" }, ...Object.entries({
        answer: own, certified: isCertified ? "yes" : "no", detected: found.isDetected[i] ? "yes" : "no",
      }).flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
      small(`Of ${numMasks} masks, ` + (pair.length > 1
        ? `numbers ${pair[0]} and ${pair[1]} together harm `
        : `number ${pair[0]}, and no second one, harms `),
      element("span", { class: "for" }, own), ` most. ${pair.length > 1 ? "They leave" : "It leaves"} ` +
        `${numLeft} of ${out.length} ablations; those out are ${isMap ? "outlined" : "shaded"}.`),
      drawStrip(left, out, highest),
      element("div", { class: "ends" }, element("span", {}, axis[0]), element("span", {}, axis[1])),
      small("By how much each ablation left prefers ",
        element("span", { class: "for" }, own), isMap ? " (full) or " : " (up) or ",
        element("span", { class: "against" }, other), isMap ? " (hollow)" : " (down)",
        `, in natural logarithms of scores; the largest is ${nats(highest)} nats.`),
      element("table", {}, element("tbody", {}, element("tr", { class: "sum masked" },
        element("td", {}, `lead of ${own}, in nats`), element("td", {}, signed(sum / data.masking.perNat, 3))))),
      small(isBroken
        ? `This pair breaks it: without them it is ${other}` + (sum ? "." : ", the smaller index of a tie.")
        : sum ? `Even without these it wins by ${nats(sum)} nats, and without any other two by no less.`
          : "Even without these it wins, as the smaller index of a tie.",
      isBroken && isCertified
        ? " It is certified all the same: every placement is covered by a mask that no second one breaks." : ""),
    ];
  }

  const attacks = attackedImages(data, {
    element, byName, signed, picture, pictureOf, drawStrip, touched, isMap,
  });

  function show() { showTable(); showGallery(); showDetail(); }

  // ---- What the user does ---------------------------------------------------------

  function select(i) {
    state.selected = i;
    for (const one of $("gallery").children) {
      one.setAttribute("aria-pressed", String(Number(one.dataset.image) === i));
    }
    showDetail();
  }

  function deselect() {
    const was = state.selected;
    if (was === null) return;
    select(null);
    $("gallery").querySelector(`[data-image="${was}"]`)?.focus();
  }

  function onArrow(event) {
    const cards = [...$("gallery").children];
    const at = cards.indexOf(document.activeElement);
    if (at < 0) return;
    const top = cards[0].offsetTop;
    const perRow = cards.filter((one) => one.offsetTop === top).length;
    const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -perRow, ArrowDown: perRow }[event.key];
    const next = cards[at + step];
    if (step === undefined || !next) return;
    event.preventDefault();
    next.focus();
    if (state.selected !== null) select(Number(next.dataset.image));
  }

  function build() {
    $("side").max = data.sides.length - 1;
    $("side").value = state.side;
    $("class").append(element("option", { value: "all" }, "all"),
      ...data.classes.map((name, k) => element("option", { value: k }, name)));
    $("attack")?.append(element("option", { value: "all" }, "all images"),
      ...attacks.kinds().map(([value, text]) => element("option", { value }, text)));
    $("votings").append(...Object.keys(data.votings).map((name) => {
      const input = element("input", { type: "radio", name: "voting", value: name });
      input.checked = name === state.voting;
      return element("label", {}, input, element("span", {}, name.replace("_", " ")));
    }));
    $("outcomes").append(...Object.entries(OUTCOMES).map(([key, { name }]) => {
      const input = element("input", { type: "checkbox", value: key });
      input.checked = true;
      return element("label", {}, input, badge(key), name, element("b", { id: `count-${key}` }));
    }));
  }

  build();
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("controls").addEventListener("input", () => {
    state.side = Number($("side").value);
    state.voting = document.querySelector("[name=voting]:checked").value;
    state.class = $("class").value;
    state.attack = $("attack")?.value ?? "all";
    state.order = $("order").value;
    state.outcomes = new Set([...$("outcomes").querySelectorAll(":checked")].map((box) => box.value));
    state.page = 0;
    show();
  });
  for (const [id, step] of [["previous", -1], ["next", 1]]) {
    $(id).addEventListener("click", () => { state.page += step; showGallery(); });
  }
  $("gallery").addEventListener("click", (event) => {
    const chosen = event.target.closest(".card");
    if (chosen) select(Number(chosen.dataset.image));
  });
  $("gallery").addEventListener("keydown", onArrow);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") deselect(); });
  show();
})();
