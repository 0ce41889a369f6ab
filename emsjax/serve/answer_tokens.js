"use strict";
// The tokens of an answer as elements, which `view.js` describes; the same as those of `page.html`.
const answerTokens = (() => {
  // Texts are set as such, and never read as HTML.
  function element(name, className, text = "") {
    const made = document.createElement(name);
    made.className = className;
    made.textContent = text;
    return made;
  }

  function lines(text) {
    return text.split("\n").flatMap((line, i) => (i ? [element("i", "nl"), `\n${line}`] : [line]));
  }

  function tokenOf({ id, source, text, cut, name }) {
    const made = element("span", `t ${source}`);
    made.dataset.id = id;
    made.append(...lines(text));
    if (cut) {
      const struck = element("s", "");
      struck.append(...lines(cut));
      made.append(struck);
    } else if (!text) made.append(name ? element("span", "name", name) : element("span", "half"));
    return made;
  }

  function stepOf({ tokens, drafted, accepted, rejected }) {
    const made = element("span", "s");
    made.append(...tokens.map(tokenOf));
    if (drafted.length) {
      made.dataset.draft = JSON.stringify(drafted);
      made.dataset.accepted = accepted;
    }
    if (tokens.length <= accepted) made.dataset.ended = "";
    if (rejected.length) made.lastElementChild.classList.add("miss");
    return made;
  }

  function viewOf(steps) {
    const text = element("div", "text");
    text.tabIndex = 0;
    text.dir = "auto";
    text.setAttribute("role", "group");
    text.setAttribute("aria-label", "Tokens of the answer; move through them with the arrow keys");
    text.append(...steps.map(stepOf));
    const view = element("div", "view");
    view.append(text, document.getElementById("legend").content.cloneNode(true));
    return view;
  }

  const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;

  function factsOf(steps, reason) {
    const sum = (of) => steps.reduce((total, step) => total + of(step), 0);
    const tokens = sum((step) => step.tokens.length);
    const facts = [`${count(tokens, "token")} in ${count(steps.length, "step")}`];
    const drafted = sum((step) => step.drafted.length);
    if (drafted) {
      const rejected = sum((step) => step.rejected.length);
      facts.push(`${drafted} drafted, ${sum((s) => s.accepted)} accepted, ${rejected} rejected`);
    }
    if (reason === "length") facts.push("ended at the length limit");
    return facts.join(" · ");
  }

  return { element, viewOf, factsOf };
})();
