"use strict";
// Everything that a row, a name or an answer says goes into the page by textContent and attributes, never as markup.
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const CARDS = 48;
  const MOST_LABELS = 300;
  const MOST_TAGS = 40;
  const byId = (id) => document.getElementById(id);

  function make(tag, attributes = {}, ...children) {
    return fill(document.createElement(tag), attributes, children);
  }

  function draw(tag, attributes = {}, ...children) {
    return fill(document.createElementNS(SVG, tag), attributes, children);
  }

  function fill(element, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
    return element;
  }

  // --- light and dark

  function setUpTheme() {
    const button = byId("theme");
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const current = () => document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
    const other = () => (current() === "dark" ? "light" : "dark");
    const show = () => { button.textContent = other() === "dark" ? "Dark" : "Light"; };
    button.addEventListener("click", () => {
      document.documentElement.dataset.theme = other();
      try { localStorage.setItem("pixscribe-theme", current()); } catch { /* a page from disk may have no storage */ }
      show();
    });
    dark.addEventListener("change", show);
    button.setAttribute("aria-label", "Switch between light and dark");
    button.hidden = false;
    show();
  }

  setUpTheme();
  const source = byId("gallery-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  source.textContent = "";
  const { images, prompts, labels, states, layers } = data;
  images.forEach((image, place) => { image.place = place; image.objects ??= []; image.answers ??= []; image.facts ??= []; });

  // --- what is asked for

  const form = byId("filters");
  const filters = { label: "", prompt: "", status: "", flag: "", error: "", state: "" };
  const hiddenLayers = new Set();
  let words = "";
  let order = "given";
  let shown = images;

  const layerOf = (object) => object.y ?? 0;
  const labelOf = (object) => (object.l === undefined ? "no label" : labels[object.l].name);
  const isSaid = (prompt) => prompt.kind === "caption" || prompt.kind === "ask";
  const isDrawn = (object) => object.b !== undefined || object.g !== undefined;

  function inScope(object) {
    return !hiddenLayers.has(layerOf(object)) && (!filters.prompt || prompts[object.p].name === filters.prompt);
  }

  function isWanted(object) {
    return inScope(object)
      && (!filters.label || (object.l !== undefined && labels[object.l].name === filters.label))
      && (!filters.flag || (object.f ?? []).includes(filters.flag))
      && (!filters.state || states[object.s] === filters.state);
  }

  function answersInScope(image) {
    return image.answers.filter((answer) => !filters.prompt || prompts[answer.p].name === filters.prompt);
  }

  function statusesOf(image) {
    const answers = answersInScope(image);
    const failed = answers.filter((answer) => answer.status === "failed").length;
    const found = new Set([filters.prompt && answers.length ? (failed ? "failed" : "ok") : image.status]);
    if (answers.some((answer) => answer.status === "repaired")) found.add("repaired");
    const looksFor = prompts.some((prompt) => (!filters.prompt || prompt.name === filters.prompt) && !isSaid(prompt));
    const isEmpty = !image.objects.some((object) => inScope(object) && !isSaid(prompts[object.p]));
    if (looksFor && !failed && image.status !== "failed" && isEmpty) found.add("no objects");
    return found;
  }

  function codesOf(image) {
    const codes = answersInScope(image).map((answer) => answer.code);
    if (!filters.prompt) codes.push(image.code);
    return codes.filter(Boolean);
  }

  function holdsWords(image) {
    const texts = [image.name, ...image.objects.map(labelOf)];
    return texts.some((text) => text.toLowerCase().includes(words));
  }

  function isAbout(image) {
    return !filters.prompt || answersInScope(image).length > 0 || image.objects.some(inScope);
  }

  function matches(image) {
    return isAbout(image)
      && (!words || holdsWords(image))
      && (!filters.status || statusesOf(image).has(filters.status))
      && (!filters.error || codesOf(image).includes(filters.error))
      && (!(filters.label || filters.flag || filters.state) || image.objects.some(isWanted));
  }

  const ORDERS = {
    given: [data.order, (a, b) => a.place - b.place],
    name: ["name", (a, b) => (a.name < b.name ? -1 : a.name > b.name ? 1 : a.place - b.place)],
    most: ["most objects", (a, b) => b.objects.length - a.objects.length || a.place - b.place],
    fewest: ["fewest objects", (a, b) => a.objects.length - b.objects.length || a.place - b.place],
  };

  // --- the filters' choices, each with the number of images that have it

  const VALUES = {
    label: (image) => image.objects.filter((object) => object.l !== undefined && !isSaid(prompts[object.p])).map(labelOf),
    prompt: (image) => [...image.answers, ...image.objects].map((one) => prompts[one.p].name),
    status: (image) => [...statusesOf(image)],
    flag: (image) => image.objects.flatMap((object) => object.f ?? []),
    error: codesOf,
    state: (image) => image.objects.filter((object) => object.s !== undefined).map((object) => states[object.s]),
  };

  function countImages(valuesOf) {
    const counts = new Map();
    for (const image of images) {
      for (const value of new Set(valuesOf(image))) counts.set(value, (counts.get(value) ?? 0) + 1);
    }
    return [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  }

  const selectOf = (name) => form.querySelector(`select[data-filter="${name}"]`);

  function offerFilters() {
    for (const [name, valuesOf] of Object.entries(VALUES)) {
      const counts = countImages(valuesOf).slice(0, MOST_LABELS);
      const select = selectOf(name);
      const useful = name === "prompt" || name === "status" ? counts.length > 1 : counts.length > 0;
      select.parentElement.hidden = !useful;
      select.append(...counts.map(([value, count]) => {
        const images = `${count.toLocaleString("en")} ${count === 1 ? "image" : "images"}`;
        return make("option", { value }, `${shorten(value, 60)} (${images})`);
      }));
    }
    const orders = Object.entries(ORDERS).map(([value, [title]]) => make("option", { value }, title));
    byId("order").append(...orders);
  }

  function offerLayers() {
    if (layers.length < 2) return;
    const boxes = layers.map((layer, place) => toggle(layer.name, (on) => {
      if (on) hiddenLayers.delete(place); else hiddenLayers.add(place);
      apply();
    }, layer.dashed));
    byId("layers").append(...boxes);
    byId("layers").hidden = false;
  }

  function offerLegend() {
    if (data.by !== "state") return;
    const used = new Set(images.flatMap((image) => image.objects.map((object) => object.s)));
    const found = states.filter((_, place) => used.has(place));
    byId("legend").append(...found.map((state) => make("span", {}, make("span", { class: `swatch state-${state}` }), state)));
    byId("legend").hidden = false;
  }

  function toggle(name, changed, dashed = false) {
    const box = make("input", { type: "checkbox" });
    box.checked = true;
    box.addEventListener("change", () => changed(box.checked));
    return make("label", { class: "toggle" }, box, make("span", { class: dashed ? "dashed" : "" }, name));
  }

  function shorten(text, most) {
    return text.length > most ? `${text.slice(0, most - 1)}…` : text;
  }

  function choose(name, value) {
    const select = selectOf(name);
    if (![...select.options].some((option) => option.value === value)) {
      select.append(make("option", { value }, `${shorten(value, 60)} (0 images)`));
      select.parentElement.hidden = false;
    }
    select.value = value;
  }

  function readForm() {
    for (const name of Object.keys(filters)) filters[name] = selectOf(name).value;
    words = byId("find").value.trim().toLowerCase();
    order = byId("order").value;
  }

  function apply() {
    readForm();
    shown = images.filter(matches).sort(ORDERS[order][1]);
    const isAll = shown.length === images.length;
    const count = shown.length.toLocaleString("en");
    const all = images.length.toLocaleString("en");
    byId("count").textContent = isAll ? `${all} ${all === "1" ? "image" : "images"}` : `${count} of ${all} images`;
    byId("show-all").hidden = !words && !Object.values(filters).some(Boolean);
    byId("nothing").hidden = shown.length > 0;
    byId("cards").replaceChildren();
    showMore();
  }

  // --- cards

  function showMore() {
    const list = byId("cards");
    const start = list.children.length;
    list.append(...shown.slice(start, start + CARDS).map(card));
    const left = shown.length - list.children.length;
    byId("more").hidden = left === 0;
    byId("more").textContent = left <= CARDS ? `Show the other ${left}` : `Show ${CARDS} more of ${left.toLocaleString("en")}`;
    return list.children[start];
  }

  function card(image) {
    const button = make("button", { type: "button", class: `card ${image.status}`, title: image.name },
      make("span", { class: "thumb" }, picture(image), image.src ? overlay(image) : null),
      nameOf(image.name), make("span", { class: "meta" }, meta(image)));
    button.addEventListener("click", () => open(image));
    return make("li", { "data-name": image.name }, button);
  }

  function nameOf(name) {
    const cut = name.lastIndexOf("/") + 1;
    return make("span", { class: "name" }, cut ? make("span", { class: "folder" }, name.slice(0, cut)) : null,
      make("span", {}, name.slice(cut)));
  }

  function meta(image) {
    const drawn = image.objects.filter((object) => inScope(object) && isDrawn(object)).length + (image.more ?? 0);
    const told = image.objects.filter((object) => inScope(object) && !isDrawn(object));
    const parts = [];
    if (image.status !== "ok") parts.push(badge(image.code ?? image.status, image.status));
    if (image.note) parts.push(make("span", {}, image.note));
    else if (drawn) parts.push(make("span", {}, `${drawn} ${drawn === 1 ? "object" : "objects"}`));
    else if (!told.length && image.status !== "failed") parts.push(make("span", {}, "no objects"));
    if (told.length) parts.push(make("span", { class: "told" }, shorten(told.map(labelOf).join(" · "), 140)));
    return parts;
  }

  function badge(text, tone) {
    return make("span", { class: `badge ${tone}` }, text);
  }

  function picture(image) {
    if (!image.src) return make("span", { class: "gone" }, image.gone ?? "no picture");
    const [width, height] = sizeOf(image);
    return make("img", { src: image.src, alt: describe(image), width, height, decoding: "async" });
  }

  const sizeOf = (image) => [image.w ?? 4, image.h ?? 3];

  function describe(image) {
    const counts = new Map();
    for (const object of image.objects) counts.set(labelOf(object), (counts.get(labelOf(object)) ?? 0) + 1);
    const found = [...counts].slice(0, 12).map(([label, count]) => `${count} × ${label}`).join(", ");
    return `${image.name}: ${found || (image.status === "failed" ? `failed, ${image.code}` : "no objects")}`;
  }

  // --- objects, drawn in pixels of the source

  function look(object) {
    if (data.by === "state") return `state-${states[object.s] ?? "same"}`;
    const label = object.l === undefined ? undefined : labels[object.l];
    return label && label.colour >= 0 ? `c${label.colour} d${label.dash}` : "c-none d0";
  }

  function overlay(image, isShown = inScope, isDim = (object) => !isWanted(object)) {
    const [width, height] = sizeOf(image);
    const drawn = image.objects.map((object, place) => ({ object, place })).filter(({ object }) => isDrawn(object) && isShown(object));
    // small ones above large ones, so that each can be pointed at
    drawn.sort((a, b) => area(b.object) - area(a.object));
    return draw("svg", { viewBox: `0 0 ${width} ${height}`, class: "overlay", "aria-hidden": "true" },
      drawn.map(({ object, place }) => shape(object, place, isDim(object))));
  }

  function area(object) {
    return object.b ? (object.b[2] - object.b[0]) * (object.b[3] - object.b[1]) : 0;
  }

  function shape(object, place, isDim) {
    const dashed = layers[layerOf(object)]?.dashed ? " dashed" : "";
    const dim = isDim ? " dim" : "";
    const group = draw("g", { class: `object ${look(object)}${dashed}${dim}`, "data-object": place });
    if (object.b) {
      const [x, y, right, bottom] = object.b;
      const box = { x, y, width: round(right - x), height: round(bottom - y) };
      group.append(draw("rect", { class: "halo", ...box }), draw("rect", { class: "box", ...box }));
    }
    if (object.g) {
      const d = object.g.map(ringPath).join("");
      group.append(draw("path", { class: "halo", d }), draw("path", { class: "ring", d, "fill-rule": "evenodd" }));
    }
    return group;
  }

  const round = (value) => Math.round(value * 100) / 100;

  function ringPath(ring) {
    const points = [];
    for (let place = 0; place < ring.length; place += 2) points.push(`${ring[place]} ${ring[place + 1]}`);
    return `M${points.join("L")}Z`;
  }

  // --- one image, large

  const view = byId("view");
  let current = null;
  const hiddenPrompts = new Set();
  let hiddenHere = new Set();
  let namesShown = true;
  let pinned = null;

  function open(image) {
    if (!view.open) hiddenHere = new Set(hiddenLayers);
    current = image;
    pinned = null;
    const place = shown.indexOf(image);
    byId("view-name").replaceChildren(nameOf(image.name));
    byId("view-place").textContent = place < 0 ? "not among the images that are filtered for" : `${place + 1} of ${shown.length}`;
    byId("previous").disabled = place <= 0;
    byId("next").disabled = place < 0 || place >= shown.length - 1;
    showFrame();
    byId("side").replaceChildren(...side(image));
    byId("side").scrollTop = 0;
    if (!view.open) view.showModal();
    remember(`#image=${encodeURIComponent(image.name)}`);
  }

  function remember(hash) {
    try { history.replaceState(null, "", hash || location.pathname + location.search); } catch { /* not from here */ }
  }

  function step(by) {
    const next = shown[shown.indexOf(current) + by];
    if (next && shown.includes(current)) open(next);
  }

  function closed() {
    remember("");
    const place = shown.indexOf(current);
    while (place >= byId("cards").children.length && !byId("more").hidden) showMore();
    byId("cards").children[place]?.firstElementChild.focus();
    current = null;
  }

  const inView = (object) => !hiddenHere.has(layerOf(object)) && !hiddenPrompts.has(object.p);

  function showFrame() {
    const frame = byId("frame");
    const [width, height] = sizeOf(current);
    frame.style.setProperty("--ratio", width / height);
    frame.replaceChildren(picture(current), overlay(current, inView, () => false), ...tags(current));
    highlight(pinned);
  }

  function tags(image) {
    const [width, height] = sizeOf(image);
    const boxed = image.objects.map((object, place) => ({ object, place })).filter(({ object }) => object.b && inView(object));
    return boxed.map(({ object, place }) => {
      const isQuiet = !namesShown || boxed.length > MOST_TAGS;
      const tag = make("span", { class: `tag ${look(object)}${isQuiet ? " quiet" : ""}${object.b[1] < 0.05 * height ? " inside" : ""}`, "data-tag": place, "aria-hidden": "true" }, shorten(labelOf(object), 40));
      tag.style.left = `${(100 * object.b[0]) / width}%`;
      tag.style.top = `${(100 * object.b[1]) / height}%`;
      return tag;
    });
  }

  function highlight(place, scrolls = false) {
    byId("frame").classList.toggle("pointing", place !== null);
    for (const group of byId("frame").querySelectorAll("[data-object]")) group.classList.toggle("hot", Number(group.dataset.object) === place);
    for (const tag of byId("frame").querySelectorAll("[data-tag]")) tag.classList.toggle("hot", Number(tag.dataset.tag) === place);
    for (const item of byId("side").querySelectorAll("[data-item]")) {
      const isHot = Number(item.dataset.item) === place;
      item.classList.toggle("hot", isHot);
      if (isHot && scrolls) item.scrollIntoView({ block: "nearest" });
    }
  }

  function pin(place) {
    pinned = pinned === place ? null : place;
    for (const item of byId("side").querySelectorAll("[data-item]")) {
      item.setAttribute("aria-pressed", Number(item.dataset.item) === pinned);
    }
    highlight(pinned);
  }

  function side(image) {
    return [trouble(image), switches(image), objectList(image), ...image.answers.map(answerOf), factList(image.facts, "About the file")]
      .filter(Boolean);
  }

  function trouble(image) {
    if (image.status === "ok" && !image.note) return null;
    const failed = image.status === "ok" ? null : badge(image.status, image.status);
    const reason = image.code ? make("p", { class: "reason" }, make("code", {}, image.code), image.error ? `: ${image.error}` : "") : null;
    return make("div", { class: "trouble" }, make("p", {}, failed, image.note ? ` ${image.note}` : ""), reason);
  }

  function switches(image) {
    const boxes = [];
    const used = [...new Set(image.objects.filter(isDrawn).map((object) => object.p))];
    if (used.length > 1) {
      for (const place of used) boxes.push(switchFor(prompts[place].name, !hiddenPrompts.has(place), (on) => on ? hiddenPrompts.delete(place) : hiddenPrompts.add(place)));
    }
    if (layers.length > 1) {
      layers.forEach((layer, place) => boxes.push(switchFor(layer.name, !hiddenHere.has(place), (on) => on ? hiddenHere.delete(place) : hiddenHere.add(place))));
    }
    if (used.length) boxes.push(switchFor("labels", namesShown, (on) => { namesShown = on; }));
    return boxes.length ? make("p", { class: "switches" }, make("span", { class: "quiet" }, "Show"), ...boxes) : null;
  }

  function switchFor(name, isOn, change) {
    const made = toggle(name, (on) => { change(on); showFrame(); });
    made.firstElementChild.checked = isOn;
    return made;
  }

  function objectList(image) {
    const count = image.objects.length + (image.more ?? 0);
    const groups = new Map();
    const isWords = (name) => groups.get(name).every((item) => item.firstElementChild.matches(".label"));
    image.objects.forEach((object, place) => {
      const name = (layers.length > 1 ? `${layers[layerOf(object)].name} · ` : "") + prompts[object.p].name;
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(objectItem(object, place));
    });
    const lists = [...groups].map(([name, items]) => [make("h4", {}, name, make("span", { class: "quiet" }, ` ${items.length}`)), make("ul", { class: isWords(name) ? "objects words" : "objects" }, items)]);
    const more = image.more ? make("p", { class: "quiet" }, `${image.more} more are in the table and not on this page.`) : null;
    return make("section", {}, make("h3", {}, count ? "Objects" : "No objects"), ...lists.flat(), more);
  }

  function objectItem(object, place) {
    const box = object.b ? make("span", { class: "numbers" }, object.b.map((edge) => edge.toFixed(0)).join(" ")) : null;
    const notes = [...(object.f ?? []).map((flag) => badge(flag, "partial")), object.s === undefined ? null : badge(states[object.s], `state-${states[object.s]}`),
      object.n ? make("span", { class: "quiet" }, object.n) : null];
    const label = make("span", { class: object.l === undefined ? "label quiet" : "label" }, labelOf(object));
    if (!isDrawn(object)) return make("li", { class: "said" }, label, ...notes);
    const item = make("button", { type: "button", "data-item": place, "aria-pressed": "false", title: "xmin ymin xmax ymax, in pixels of the source" },
      make("span", { class: `swatch ${look(object)}` }), label, ...notes, box);
    for (const event of ["pointerenter", "focus"]) item.addEventListener(event, () => highlight(place));
    for (const event of ["pointerleave", "blur"]) item.addEventListener(event, () => highlight(pinned));
    item.addEventListener("click", () => pin(place));
    return make("li", {}, item);
  }

  function answerOf(answer) {
    const name = (layers.length > 1 && answer.y !== undefined ? `${layers[answer.y].name} · ` : "") + prompts[answer.p].name;
    const tone = { ok: "ok", repaired: "partial", failed: "failed" }[answer.status] ?? "";
    const heading = make("h3", {}, `Answer to ${name}`, " ", badge(answer.status, tone));
    const reason = answer.error || answer.code
      ? make("p", { class: "reason" }, answer.code ? make("code", {}, answer.code) : "", answer.error ? `${answer.code ? ": " : ""}${answer.error}` : "") : null;
    const text = answer.text === undefined ? make("p", { class: "quiet" }, answer.status === "failed" ? "There is no answer." : "The answer is empty.")
      : make("pre", { tabindex: "0", "aria-label": `The model's words on ${name}` }, answer.text);
    const cut = answer.cut ? make("p", { class: "quiet" }, `${answer.cut.toLocaleString("en")} more characters are in the table and not on this page.`) : null;
    return make("section", { class: "answer" }, heading, reason, text, cut, factList(answer.facts ?? []));
  }

  function factList(facts, title = "") {
    if (!facts.length) return null;
    const list = make("dl", { class: "facts-list" }, facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
    return title ? make("section", {}, make("h3", {}, title), list) : list;
  }

  // --- what people do

  function openFromAddress() {
    if (!location.hash.startsWith("#image=")) return;
    let name = "";
    try { name = decodeURIComponent(location.hash.slice("#image=".length)); } catch { return; }
    const image = images.find((each) => each.name === name);
    if (image && image !== current) open(image);
  }

  form.addEventListener("input", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { apply(); byId("find").focus(); }));
  byId("more").addEventListener("click", () => showMore()?.firstElementChild.focus());
  byId("previous").addEventListener("click", () => step(-1));
  byId("next").addEventListener("click", () => step(1));
  byId("close").addEventListener("click", () => view.close());
  view.addEventListener("close", closed);
  view.addEventListener("click", (event) => { if (event.target === view) view.close(); });
  view.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) { event.preventDefault(); step(by); }
  });
  // not pointerenter, which also comes to a pointer that rests where the large view appears
  byId("frame").addEventListener("pointermove", (event) => {
    const group = event.target.closest("[data-object]");
    highlight(group ? Number(group.dataset.object) : pinned, group !== null);
  });
  byId("frame").addEventListener("pointerleave", () => highlight(pinned));
  byId("frame").addEventListener("click", (event) => {
    const group = event.target.closest("[data-object]");
    if (group) pin(Number(group.dataset.object));
  });
  addEventListener("hashchange", openFromAddress);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-image], [data-filters]");
    if (!link) return;
    const name = JSON.parse(link.dataset.image ?? "null");
    const image = images.find((each) => each.name === name);
    if (image) { open(image); return; }
    form.reset();
    const wanted = JSON.parse(link.dataset.filters ?? "{}");
    for (const [name, value] of Object.entries(wanted)) choose(name, value);
    setTimeout(() => {
      apply();
      byId("gallery").scrollIntoView();
      selectOf(Object.keys(wanted)[0])?.focus({ preventScroll: true });
    }, 1);
  });

  offerFilters();
  offerLayers();
  offerLegend();
  apply();
  openFromAddress();
})();
