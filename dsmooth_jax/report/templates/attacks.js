"use strict";
// What attack.py made of the images that the explorer shows; tools are the explorer's.
function attackedImages(data, { element, byName, signed, picture, pictureOf, drawStrip, touched, isMap }) {
  const small = (...children) => element("p", { class: "small" }, ...children);
  const fell = (attack, k) => attack.after[k] !== attack.before[k];

  // The choices of the form: [value, text].
  function kinds() {
    return data.attacks.flatMap((attack, a) => [true, false].map((isFallen) => {
      const count = attack.images.filter((_, k) => fell(attack, k) === isFallen).length;
      return [`${a} ${isFallen}`, `${attack.name}: ${isFallen ? "fell" : "stand"} (${count})`];
    }));
  }

  function isLike(i, value) {
    const [a, isFallen] = value.split(" ");
    const attack = data.attacks[Number(a)];
    const k = attack.images.indexOf(i);
    return k >= 0 && String(fell(attack, k)) === isFallen;
  }

  // What the ablations prefer, before and after: two lists.
  function preferences(attack, k) {
    const bytes = Uint8Array.from(atob(attack.preferences[k]), (c) => c.charCodeAt(0));
    const both = Array.from(new Int16Array(bytes.buffer)); // little-endian, as browsers are
    return [both.slice(0, both.length / 2), both.slice(both.length / 2)];
  }

  function detail(i, axis) {
    return data.attacks.flatMap((attack) => {
      const k = attack.images.indexOf(i);
      return k < 0 ? [] : one(attack, k, axis);
    });
  }

  function one(attack, k, axis) {
    const [high, wide] = attack.size;
    const [row, column] = [attack.row[k], attack.column[k]];
    const [before, after] = [byName(attack.before[k]), byName(attack.after[k])];
    const outline = () => ["outline", "outline top"].map((kind) =>
      element("rect", { class: kind, x: column, y: row, width: wide, height: high }));
    const attacked = pictureOf(attack.sheet, attack.atlas, attack.images.length, k, outline());
    const shown = (name, image, answer) => element("div", {}, image, small(`${name}: ${answer}`));
    return [
      element("h4", {}, `Attacked by a ${high}x${wide} patch`),
      small(`Decided by ${attack.by}. attack.py looked for a patch (outlined) at row ${row}, ` +
        `column ${column}: the image ${fell(attack, k) ? "fell." : "stands, which proves nothing."} ` +
        `Of ${attack.tried.toLocaleString("en")} images attacked ${attack.fell.toLocaleString("en")} fell.`),
      element("div", { class: "pair" },
        shown("before", picture(attack.images[k], ...outline()), before),
        shown("after", attacked, after)),
      ...(attack.preferences ? account(attack, k, axis)
        : [small("This attack kept no scores; attack anew to see what the ablations said.")]),
    ];
  }

  // What each ablation says, before and after, and what it adds up to.
  function account(attack, k, axis) {
    const both = preferences(attack, k);
    const isTouched = touched(attack.row[k], attack.column[k], attack.size);
    const [own, rival] = [byName(attack.before[k]), byName(attack.rival[k])];
    const isVotes = attack.decision === "votes";
    const highest = isVotes ? attack.unit : Math.max(1, ...both.flat().map(Math.abs));
    const digits = isVotes ? (attack.unit > 1 ? 2 : 0) : 3;
    const sum = (list, isIn) => list.reduce((total, g, p) => total + (isIn(p) ? g : 0), 0);
    const line = (name, isIn, kind = "") => element("tr", { class: kind }, element("td", {}, name),
      ...both.map((list) => element("td", {}, signed(sum(list, isIn) / attack.unit, digits))));
    const count = isTouched.filter(Boolean).length;
    const strips = ["before", "after"].flatMap((name, n) => [small(name), drawStrip(both[n], isTouched, highest)]);
    return [...strips,
      element("div", { class: "ends" }, element("span", {}, axis[0]), element("span", {}, axis[1])),
      small("What each ablation prefers: ", element("span", { class: "for" }, own),
        isMap ? " (full) or " : " (up) or ", element("span", { class: "against" }, rival),
        isMap ? " (hollow)" : " (down)", isVotes ? "." : ", in natural logarithms of scores."),
      element("table", { class: "attacked" },
        element("thead", {}, element("tr", {}, ...[`lead of ${own} over ${rival}`, "before", "after"]
          .map((text) => element("th", { scope: "col" }, text)))),
        element("tbody", {},
          line(`the ${isTouched.length - count} ablations out of reach`, (p) => !isTouched[p]),
          line(`the ${count} touched`, (p) => isTouched[p]),
          line("all", () => true, "total")))];
  }

  return { kinds, isLike, detail };
}
