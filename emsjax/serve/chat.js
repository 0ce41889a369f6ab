"use strict";
(() => {
  const { element, viewOf, factsOf } = answerTokens;
  const at = (id) => document.getElementById(id);
  const log = at("log");
  const prompt = at("prompt");
  let key = ""; // in memory only
  let said = []; // the messages of the conversation
  let running = null; // what aborts the answer that is being written

  // The server.

  class Refused extends Error {
    constructor(status, message) {
      super(message);
      this.status = status;
    }
  }

  async function ask(path, options = {}) {
    const headers = { "Content-Type": "application/json" };
    if (key) headers.Authorization = `Bearer ${key}`;
    let answer;
    try {
      answer = await fetch(path, { ...options, headers, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused(0, "The server cannot be reached.");
    }
    if (answer.ok) return answer;
    const body = await answer.json().catch(() => null);
    throw new Refused(answer.status, body?.error?.message ?? `The server says ${answer.status}.`);
  }

  async function* events(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let held = "";
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        if (error.name === "AbortError") throw error;
        throw new Refused(0, "The connection to the server was lost.");
      });
      if (done) throw new Refused(0, "The server ended the answer.");
      held += value;
      const whole = held.split("\n\n");
      held = whole.pop();
      for (const event of whole) {
        if (event === "data: [DONE]") return;
        const chunk = JSON.parse(event.slice("data: ".length));
        if (chunk.error) throw new Refused(0, chunk.error.message);
        yield chunk;
      }
    }
  }

  // The key.

  function askForKey(note) {
    at("key-form").hidden = false;
    if (note) at("key-note").textContent = note;
    at("key").focus();
  }

  async function open() {
    try {
      const { data } = await (await ask("v1/models")).json();
      at("model").textContent = document.title = data[0].id;
      at("key-form").hidden = true;
      prompt.focus();
    } catch (error) {
      if (error.status === 401) askForKey("The key is wrong.");
      else at("welcome").textContent = error.message;
    }
  }

  at("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const given = at("key").value.trim();
    at("key").value = "";
    if (!/^[ -~]*$/.test(given)) return askForKey("The key is wrong."); // no header may hold it
    key = given;
    open();
  });

  // The conversation.

  const atEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < 40;
  const toEnd = () => { log.scrollTop = log.scrollHeight; };

  function addMessage(role, text = "") {
    at("welcome").hidden = true;
    const article = element("article", role);
    const message = element("div", "said", text);
    message.dir = "auto";
    article.append(element("h2", "", role === "user" ? "You" : "Model"), message);
    log.append(article);
    toEnd();
    return article;
  }

  function fields() {
    const system = at("system").value.trim();
    const messages = system ? [{ role: "system", content: system }, ...said] : said;
    const given = { messages, stream: true, emsjax_trace: true };
    const numbers = { temperature: at("temperature"), max_tokens: at("max-tokens") };
    for (const [name, input] of Object.entries(numbers)) {
      if (input.value) given[name] = Number(input.value);
    }
    return given;
  }

  async function write(article, signal) {
    const message = article.querySelector(".said");
    const answer = await ask("v1/chat/completions", {
      method: "POST", body: JSON.stringify(fields()), signal,
    });
    const found = { reason: null, trace: null };
    for await (const { choices: [choice] } of events(answer.body)) {
      const follow = atEnd();
      if (choice.delta.content) message.append(choice.delta.content);
      found.reason = choice.finish_reason ?? found.reason;
      found.trace = choice.emsjax_trace ?? found.trace;
      if (follow) toEnd();
    }
    return found;
  }

  function busy(control) {
    running = control;
    at("send").hidden = control !== null;
    at("stop").hidden = control === null;
    log.setAttribute("aria-busy", String(control !== null)); // answers are read out once complete
  }

  async function send(text) {
    const control = new AbortController();
    const before = said;
    said = [...said, { role: "user", content: text }];
    const asked = addMessage("user", text);
    const article = addMessage("assistant");
    article.classList.add("writing");
    busy(control);
    let found = null;
    let failure = null;
    try {
      found = await write(article, control.signal);
    } catch (error) {
      failure = error;
    }
    article.classList.remove("writing");
    if (running !== control) return; // a new chat has begun
    busy(null);
    finish({ article, asked, before, text, found, failure });
    toEnd();
  }

  function finish({ article, asked, before, text, found, failure }) {
    const answer = article.querySelector(".said").textContent;
    const stopped = failure?.name === "AbortError";
    if (found || (stopped && answer)) said = [...said, { role: "assistant", content: answer }];
    else { // what has no answer is not part of the conversation
      said = before;
      if (!prompt.value) setPrompt(text);
      if (stopped) { asked.remove(); article.remove(); }
    }
    if (found) addTokens(article, found);
    else if (stopped) article.append(element("p", "about facts", "Stopped."));
    else addError(article, failure);
  }

  function addError(article, failure) {
    const [first, ...rest] = failure.message; // the server's begin small
    const shown = element("p", "error", first.toUpperCase() + rest.join(""));
    shown.setAttribute("role", "alert");
    article.append(shown);
    if (failure.status === 401) askForKey("The key is wrong or missing.");
  }

  // The token view of an answer.

  function addTokens(article, { reason, trace }) {
    const about = element("div", "about");
    article.append(about);
    if (!trace) return;
    about.append(element("span", "facts", factsOf(trace.steps, reason)));
    const button = element("button", "", "Show tokens");
    button.type = "button";
    button.setAttribute("aria-expanded", "false");
    about.prepend(button);
    let view = null;
    button.addEventListener("click", () => {
      const show = button.getAttribute("aria-expanded") === "false";
      if (!view) article.append(view = viewOf(trace.steps));
      view.hidden = !show;
      article.querySelector(".said").hidden = show;
      button.setAttribute("aria-expanded", String(show));
      button.textContent = show ? "Show text" : "Show tokens";
    });
  }

  // Keys and buttons.

  function setPrompt(text) {
    prompt.value = text;
    prompt.style.height = "auto";
    prompt.style.height = `${prompt.scrollHeight + 2}px`;
  }

  function submit() {
    const text = prompt.value.trim();
    if (!text || running) return;
    if (!at("settings-form").checkValidity()) {
      at("settings").open = true;
      at("settings-form").reportValidity();
      return;
    }
    setPrompt("");
    send(text);
  }

  function stop() {
    running?.abort();
    prompt.focus();
  }

  at("composer").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
  at("settings-form").addEventListener("submit", (event) => event.preventDefault());
  at("stop").addEventListener("click", stop);
  at("new").addEventListener("click", () => {
    const old = running;
    busy(null);
    old?.abort();
    said = [];
    log.replaceChildren(at("welcome"));
    at("welcome").hidden = false;
    prompt.focus();
  });
  prompt.addEventListener("input", () => setPrompt(prompt.value));
  prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    submit();
  });
  document.addEventListener("keydown", ({ key: pressed, isComposing }) => {
    if (pressed === "Escape" && running && !isComposing) stop();
  });
  if ("needsKey" in document.body.dataset) askForKey();
  else open();
})();
