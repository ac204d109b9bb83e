// What is asked of a page, in a world of its own: the page's scripts can neither see nor change what stands here.
// Names are taken from prototypes, since a form's or a document's own may be hidden by the names of what is in it.
(op, args, limits) => {
  const until = performance.now() + limits.milliseconds;
  const getter = (type, name) => Object.getOwnPropertyDescriptor(type.prototype, name).get;
  const rootOf = getter(Document, "documentElement");
  const textOf = getter(Node, "nodeValue");
  const parentOf = getter(Node, "parentElement");
  const tagOf = getter(Element, "tagName");
  const shadowOf = getter(Element, "shadowRoot");
  const attribute = (element, name) => Element.prototype.getAttribute.call(element, name);
  const box = (element) => Element.prototype.getBoundingClientRect.call(element);
  const cut = (value, most) => String(value ?? "").replace(/\s+/g, " ").trim().slice(0, most);
  const walker = (root, kind) =>
    Document.prototype.createTreeWalker.call(root.nodeType === 9 ? root : root.ownerDocument, root, kind);

  const TAGS = new Set(["BUTTON", "INPUT", "SELECT", "TEXTAREA", "SUMMARY", "VIDEO", "AUDIO"]);
  const ROLES = new Set(["button", "link", "checkbox", "radio", "switch", "tab", "menuitem", "menuitemcheckbox",
    "menuitemradio", "option", "combobox", "textbox", "searchbox", "slider", "spinbutton", "treeitem"]);
  const SILENT = new Set(["SCRIPT", "STYLE", "NOSCRIPT", "TEMPLATE", "HEAD", "TITLE"]);

  const visible = (element) => {
    const { width, height } = box(element);
    return width > 0 && height > 0 && getComputedStyle(element).visibility === "visible";
  };

  const interactive = (element, tag) => {
    if (tag === "INPUT") return attribute(element, "type") !== "hidden";
    if (TAGS.has(tag)) return true;
    if (tag === "A") return attribute(element, "href") !== null || attribute(element, "onclick") !== null;
    if (ROLES.has(attribute(element, "role"))) return true;
    if (attribute(element, "onclick") !== null || attribute(element, "contenteditable") === "true") return true;
    const place = attribute(element, "tabindex");
    if (place !== null && Number(place) >= 0) return true;
    const above = parentOf.call(element);
    return getComputedStyle(element).cursor === "pointer" && above !== null &&
      getComputedStyle(above).cursor !== "pointer";
  };

  const words = (element, most) => {
    const texts = walker(element, NodeFilter.SHOW_TEXT);
    let found = "";
    for (let seen = 0; seen < 200 && found.length < most && texts.nextNode(); seen++) {
      if (!SILENT.has(tagOf.call(parentOf.call(texts.currentNode) ?? element))) {
        found = cut(found + " " + textOf.call(texts.currentNode), most);
      }
    }
    return found;
  };

  const describe = (element, tag) => {
    const shown = { tag: tag.toLowerCase() };
    for (const name of ["type", "name", "role", "aria-label", "placeholder", "title", "alt", "href"]) {
      const value = cut(attribute(element, name), name === "href" ? 150 : limits.words);
      if (value) shown[name] = value;
    }
    const text = tag === "SELECT" ? "" : words(element, limits.words);
    if (text) shown.text = text;
    return shown;
  };

  // What changes while one looks at it is shown, and is no part of what it is found again by.
  const condition = (element, tag) => {
    const shown = {};
    if (tag === "INPUT" || tag === "TEXTAREA") {
      const kind = attribute(element, "type");
      if (kind === "checkbox" || kind === "radio") shown.checked = Boolean(element.checked);
      else if (kind !== "password" && cut(element.value, limits.words)) shown.value = cut(element.value, limits.words);
    }
    if (tag === "SELECT") shown.value = cut(element.selectedOptions[0]?.text, limits.words);
    if (attribute(element, "disabled") !== null) shown.disabled = true;
    return shown;
  };

  const digest = (shown) => {
    let hash = 0xcbf29ce484222325n;
    for (const letter of JSON.stringify(shown)) {
      hash = BigInt.asUintN(64, (hash ^ BigInt(letter.codePointAt(0))) * 0x100000001b3n);
    }
    return hash.toString(36);
  };

  // Everything that one may act on, in the order of the document; frames and shadow trees that can be entered are.
  function* candidates() {
    const met = new Map();
    const waiting = [{ root: document, dx: 0, dy: 0 }];
    let nodes = 0;
    while (waiting.length) {
      const { root, dx, dy } = waiting.pop();
      const elements = walker(root, NodeFilter.SHOW_ELEMENT);
      while (elements.nextNode()) {
        if (++nodes > limits.nodes || performance.now() > until) return;
        const element = elements.currentNode;
        try {
          const tag = tagOf.call(element).toUpperCase();
          const shadow = shadowOf.call(element);
          if (shadow) waiting.push({ root: shadow, dx, dy });
          if (tag === "IFRAME" || tag === "FRAME") {
            const inner = element.contentDocument;
            const place = box(element);
            if (inner) waiting.push({ root: inner, dx: dx + place.x + element.clientLeft, dy: dy + place.y + element.clientTop });
            else if (!visible(element)) continue;
          }
          if (!(interactive(element, tag) || (tag === "IFRAME" && !element.contentDocument)) || !visible(element)) continue;
          const shown = describe(element, tag);
          const mark = digest(shown);
          const nth = met.get(mark) ?? 0;
          met.set(mark, nth + 1);
          yield { element, tag, shown, dx, dy, target: `${mark}.${nth}` };
        } catch {
          continue; // an element that cannot be described is not shown
        }
      }
    }
  }

  const found = (target) => {
    for (const candidate of candidates()) if (candidate.target === target) return candidate;
    return null;
  };

  const nearText = () => {
    const texts = walker(document, NodeFilter.SHOW_TEXT);
    const range = Document.prototype.createRange.call(document);
    let found = "";
    for (let seen = 0; seen < limits.nodes && found.length < limits.text && texts.nextNode(); seen++) {
      const node = texts.currentNode;
      const said = cut(textOf.call(node), limits.text);
      const parent = parentOf.call(node);
      if (!said || !parent || SILENT.has(tagOf.call(parent))) continue;
      range.selectNode(node);
      const { top, bottom, width } = range.getBoundingClientRect();
      if (width > 0 && bottom > 0 && top < innerHeight && getComputedStyle(parent).visibility === "visible") {
        found += said + "\n";
      }
      if (performance.now() > until) break;
    }
    return found.slice(0, limits.text);
  };

  const hit = (x, y) => {
    let within = document;
    for (;;) {
      const element = (within instanceof ShadowRoot ? ShadowRoot : Document).prototype.elementFromPoint.call(within, x, y);
      if (!element) return null;
      const inner = shadowOf.call(element) ?? (tagOf.call(element) === "IFRAME" ? element.contentDocument : null);
      if (!inner || inner === within) return element;
      if (inner.nodeType === 9) {
        const place = box(element);
        x -= place.x + element.clientLeft;
        y -= place.y + element.clientTop;
      }
      within = inner;
    }
  };

  const belongs = (inner, outer) => {
    for (let node = inner; node; node = node.parentNode ?? node.host) if (node === outer) return true;
    return false;
  };

  const point = ({ element, dx, dy }) => {
    Element.prototype.scrollIntoView.call(element, { block: "center", inline: "center", behavior: "instant" });
    // What lies in a frame has moved with it.
    let [left, top] = [0, 0];
    for (let view = element.ownerDocument.defaultView; view && view !== window; view = view.parent) {
      const place = box(view.frameElement);
      left += place.x + view.frameElement.clientLeft;
      top += place.y + view.frameElement.clientTop;
    }
    const place = box(element);
    let over = null;
    for (const [part, down] of [[0.5, 0.5], [0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75], [0.1, 0.5], [0.9, 0.5]]) {
      const x = left + place.x + place.width * part;
      const y = top + place.y + place.height * down;
      const met = hit(x, y);
      if (met && (belongs(met, element) || [...(element.labels ?? [])].some((label) => belongs(met, label)))) return { x, y };
      over ??= met;
    }
    if (!over) return { x: left + place.x + place.width / 2, y: top + place.y + place.height / 2 };
    return { covered: describe(over, tagOf.call(over)) };
  };

  const tell = (element) => {
    for (const kind of ["input", "change"]) element.dispatchEvent(new Event(kind, { bubbles: true, composed: true }));
  };

  const PICKED = new Set(["date", "time", "datetime-local", "month", "week", "color", "range"]);

  const operations = {
    look() {
      const root = rootOf.call(document);
      const elements = [];
      let count = 0;
      for (const { element, tag, shown, target, dy } of candidates()) {
        const index = count++;
        const place = box(element);
        const near = dy + place.bottom > -innerHeight && dy + place.top < 2 * innerHeight;
        if (!near || elements.length >= limits.elements) continue;
        elements.push({ index, target, ...shown, ...condition(element, tag) });
      }
      const above = Math.max(0, Math.round(scrollY));
      const below = root ? Math.max(0, Math.round(root.scrollHeight - scrollY - innerHeight)) : 0;
      const page = { url: cut(location.href, 2000), title: cut(getter(Document, "title").call(document), 300) };
      return { ...page, width: innerWidth, height: innerHeight, above, below, count, elements, text: nearText() };
    },
    point(target) {
      const candidate = found(target);
      return candidate && { ...point(candidate), tag: candidate.tag };
    },
    prepare(target, text) {
      const candidate = found(target);
      if (!candidate) return null;
      const { element, tag } = candidate;
      Element.prototype.scrollIntoView.call(element, { block: "center", behavior: "instant" });
      if (tag === "INPUT" && PICKED.has(attribute(element, "type"))) {
        element.value = text;
        tell(element);
        return { done: true };
      }
      element.focus();
      if (tag === "INPUT" || tag === "TEXTAREA") element.select();
      else if (element.isContentEditable) getSelection().selectAllChildren(element);
      else return { refused: true };
      return { done: false };
    },
    options(target) {
      const candidate = found(target);
      if (!candidate) return null;
      if (candidate.tag !== "SELECT") return { refused: true };
      return { options: [...candidate.element.options].slice(0, limits.elements).map((each) => cut(each.text, limits.words)) };
    },
    select(target, text) {
      const candidate = found(target);
      if (!candidate) return null;
      const { element, tag } = candidate;
      if (tag !== "SELECT") return { refused: true };
      const wanted = cut(text, limits.words);
      const option = [...element.options].find((each) => cut(each.text, limits.words) === wanted || each.value === text);
      if (!option) return { missing: true };
      if (element.multiple) option.selected = true;
      else element.value = option.value, element.selectedIndex = option.index;
      tell(element);
      return { done: true };
    },
    scrollTo(text) {
      const wanted = cut(text, limits.text).toLowerCase();
      const texts = walker(document, NodeFilter.SHOW_TEXT);
      for (let seen = 0; seen < limits.nodes && texts.nextNode(); seen++) {
        const parent = parentOf.call(texts.currentNode);
        if (!parent || SILENT.has(tagOf.call(parent)) || !visible(parent)) continue;
        if (!cut(textOf.call(texts.currentNode), 1e6).toLowerCase().includes(wanted)) continue;
        Element.prototype.scrollIntoView.call(parent, { block: "center", behavior: "instant" });
        return true;
      }
      return false;
    },
    scroll(pixels) {
      const before = scrollY;
      scrollBy({ top: pixels === null ? innerHeight : pixels === -1 ? -innerHeight : pixels, behavior: "instant" });
      return Math.round(scrollY - before);
    },
  };
  return operations[op](...args);
}
