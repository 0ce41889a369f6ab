"use strict";
(() => {
  const tip = document.getElementById("tip");
  // Makes whitespace visible, which a chip would hide.
  const shown = (text) =>
    (text.trim() ? text : text.replaceAll(" ", "␣")).replaceAll("\n", "↵").replaceAll("\t", "⇥");

  function element(name, className, text = "") {
    const made = document.createElement(name);
    made.className = className;
    made.textContent = text;
    return made;
  }

  function row(label, chips) {
    const made = element("div", "row");
    made.append(element("span", "", label), ...chips);
    return made;
  }

  // A draft token: accepted, wrong, or dropped because it follows a wrong one or the end of the
  // text. A sign repeats what the colour says, for readers who cannot tell the colours apart.
  function guess(text, place, accepted, ended) {
    const kind = place < accepted ? "accepted" : place === accepted && !ended ? "wrong" : "dropped";
    const sign = { accepted: " ✓", wrong: " ✗", dropped: "" }[kind];
    return element("span", `guess ${kind}`, shown(text) + sign);
  }

  function aboutStep(step) {
    const steps = [...step.parentElement.children];
    const tokens = step.childElementCount;
    const number = steps.indexOf(step) + 1;
    const head = `Step ${number} of ${steps.length}: ${tokens} token${tokens === 1 ? "" : "s"}`;
    const found = [element("p", "head", head)];
    const accepted = Number(step.dataset.accepted);
    const ended = "ended" in step.dataset;
    const draft = JSON.parse(step.dataset.draft ?? "[]");
    if (!draft.length) {
      found.push(element("p", "", "Nothing was drafted. This is the target's own token."));
      return found;
    }
    found.push(row("drafted", draft.map((text, i) => guess(text, i, accepted, ended))));
    const missed = step.querySelector(".miss");
    if (missed) {
      const kind = `guess ${sourceOf(missed)}`;
      const text = missed.textContent || `#${missed.dataset.id}`; // parts of characters have no text
      found.push(row("instead", [element("span", kind, shown(text))]));
    }
    if (ended && accepted < draft.length) {
      found.push(element("p", "", "The text ended here; the rest of the draft was dropped."));
    }
    return found;
  }

  const WORDS = {
    drafted: "drafted and accepted",
    bonus: "bonus, the target's own",
    plain: "plain, the target's own",
  };

  const sourceOf = (token) => Object.keys(WORDS).find((name) => token.classList.contains(name));

  function aboutToken(token) {
    const missed = token.classList.contains("miss");
    const words = WORDS[sourceOf(token)] + (missed ? " that replaced a rejected draft" : "");
    const found = [...aboutStep(token.parentElement)];
    found.push(element("p", "", `Token ${token.dataset.id}: ${words}.`));
    if (token.querySelector(".half")) {
      found.push(element("p", "", "Part of a character that a later token completes."));
    }
    if (token.querySelector("s")) {
      found.push(element("p", "", "Struck out: after the end of the text."));
    }
    return found;
  }

  const aboutStay = (stay) => {
    const [head, ...lines] = stay.dataset.tip.split("\n");
    return [element("p", "head", head), ...lines.map((line) => element("p", "", line))];
  };

  function placeTip(box) {
    tip.hidden = false;
    tip.style.left = "0"; // or it would be narrower where it is far to the right
    const { width, height } = tip.getBoundingClientRect();
    const below = box.bottom + 8 + height <= innerHeight;
    const left = Math.min(Math.max(box.left, 8), innerWidth - width - 8);
    tip.style.left = `${Math.max(left, 8)}px`;
    tip.style.top = `${below ? box.bottom + 8 : Math.max(box.top - height - 10, 4)}px`;
  }

  // The step that the tip describes, marked in its text and in its chart.
  let marked = [];
  function unmark() {
    for (const [node, name] of marked) {
      node.classList.remove(name);
      if (name === "cursor") { node.hidden = true; node.classList.add(name); }
    }
    marked = [];
  }

  function mark(step) {
    unmark();
    step.classList.add("on");
    marked = [[step, "on"]];
    const cursor = step.closest("article").querySelector(".cursor");
    if (!cursor) return; // the server's page has no charts
    const steps = [...step.parentElement.children];
    cursor.style.left = `${(100 * steps.indexOf(step)) / steps.length}%`;
    cursor.hidden = false;
    marked.push([cursor, "cursor"]);
  }

  // A token that wraps has a box on each of its lines.
  const boxOf = (node) => node.getClientRects()[0];

  let anchor; // returns the box that the tip stays next to while the page is scrolled
  function showTip(lines, where) {
    tip.replaceChildren(...lines);
    anchor = where;
    placeTip(anchor());
  }

  function describeToken(token) {
    mark(token.parentElement);
    showTip(aboutToken(token), () => boxOf(token));
  }

  function hide() {
    tip.hidden = true;
    unmark();
  }

  // Pointer.
  document.addEventListener("pointerover", ({ target }) => {
    const token = target.closest(".text .t");
    const stay = target.closest(".stay");
    if (token) describeToken(token);
    else if (stay) showTip(aboutStay(stay), () => boxOf(stay));
  });
  document.addEventListener("pointerout", ({ target, relatedTarget }) => {
    const from = target.closest(".text, .stay, .chart");
    if (from && !from.contains(relatedTarget)) hide();
  });
  document.addEventListener("pointermove", (event) => {
    const chart = event.target.closest(".chart");
    if (!chart) return;
    const box = chart.getBoundingClientRect();
    const steps = chart.closest("article").querySelector(".text").children;
    const at = Math.floor(((event.clientX - box.left) / box.width) * steps.length);
    const step = steps[Math.min(Math.max(at, 0), steps.length - 1)];
    mark(step);
    showTip(aboutStep(step), () => {
      const { top, bottom } = boxOf(chart);
      return { left: event.clientX + 12, top, bottom };
    });
  });

  // Keyboard: each text has a current token, which the arrow keys change.
  const current = new WeakMap();
  function go(text, token) {
    if (!token) return;
    current.get(text)?.classList.remove("at");
    current.set(text, token);
    token.classList.add("at");
    token.scrollIntoView({ block: "nearest" });
    describeToken(token);
  }

  const MOVES = {
    ArrowRight: (all, at) => all[at + 1],
    ArrowLeft: (all, at) => all[at - 1],
    ArrowDown: (all, at) => all.slice(at + 1).find((token) => token.matches(".miss")),
    ArrowUp: (all, at) => all.slice(0, at).findLast((token) => token.matches(".miss")),
    Home: (all) => all[0],
    End: (all) => all.at(-1),
  };

  // Of the document, because the server's page adds texts.
  const textOf = (event) => event.target.closest?.(".text");
  document.addEventListener("focusin", (event) => {
    const text = event.target;
    if (text.matches(".text:focus-visible")) go(text, current.get(text) ?? text.querySelector(".t"));
  });
  document.addEventListener("focusout", ({ target }) => {
    if (!target.matches(".text")) return;
    current.get(target)?.classList.remove("at");
    hide();
  });
  document.addEventListener("click", (event) => {
    if (textOf(event)) go(textOf(event), event.target.closest(".t"));
  });
  document.addEventListener("keydown", (event) => {
    const move = MOVES[event.key];
    const text = textOf(event);
    if (!text || !move || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const all = [...text.querySelectorAll(".t")];
    go(text, move(all, all.indexOf(current.get(text))));
  });
  for (const stay of document.querySelectorAll(".stay")) {
    stay.addEventListener("focus", () => {
      if (stay.matches(":focus-visible")) showTip(aboutStay(stay), () => boxOf(stay));
    });
    stay.addEventListener("blur", hide);
    // In the frame of a notebook, following a link to an anchor would leave the page.
    stay.addEventListener("click", (event) => {
      event.preventDefault();
      hide();
      const article = document.querySelector(stay.getAttribute("href"));
      article.scrollIntoView({ block: "start" });
      article.focus({ preventScroll: true });
    });
  }
  document.addEventListener("keydown", ({ key }) => { if (key === "Escape") hide(); });
  document.addEventListener("scroll", () => { if (!tip.hidden) placeTip(anchor()); }, true);
})();
