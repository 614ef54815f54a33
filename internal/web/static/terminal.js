"use strict";
// A terminal in a sandbox. What the program writes goes to xterm and nowhere else: no links, no title, no clipboard, no answers with what the page knows.
(() => {
  const form = document.getElementById("term-form");
  if (!form) return;
  const nonce = document.currentScript?.nonce || document.querySelector("script[nonce]")?.nonce || "";
  const state = document.getElementById("term-state");
  const start = document.getElementById("term-start");
  const stop = document.getElementById("term-stop");
  const place = document.getElementById("term");

  // xterm makes style sheets and sets style attributes by text, which the page's policy refuses: sheets get the nonce, attributes go by their property.
  const create = document.createElement;
  document.createElement = function (name, options) {
    const el = create.call(document, name, options);
    if (String(name).toLowerCase() === "style") el.nonce = nonce;
    return el;
  };
  const setAttribute = Element.prototype.setAttribute;
  Element.prototype.setAttribute = function (name, value) {
    if (name === "style" && this.style) { this.style.cssText = value; return; }
    setAttribute.call(this, name, value);
  };

  const term = new Terminal({
    allowProposedApi: false, convertEol: false, cursorBlink: false, fontSize: 13, scrollback: 5000, screenReaderMode: false, linkHandler: { activate: () => {}, allowNonHttpProtocols: false },
    fontFamily: getComputedStyle(document.documentElement).getPropertyValue("--mono"), theme: { background: "#0d1413", foreground: "#dbe6e2", cursor: "#7fd1c7" },
  });
  const fit = new FitAddon.FitAddon();
  term.loadAddon(fit);
  // Titles (0, 1, 2), working directory (7), links (8), notifications (9, 99, 777), colours that can be asked for (4, 10 to 19), clipboard (52), iTerm's files (1337).
  for (const code of [0, 1, 2, 4, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 52, 99, 777, 1337]) term.parser.registerOscHandler(code, () => true);
  term.parser.registerDcsHandler({ intermediates: "$", final: "q" }, () => true); // DECRQSS: would answer
  term.parser.registerCsiHandler({ final: "t" }, () => true); // window operations
  term.open(place);
  fit.fit();

  const encoder = new TextEncoder();
  let socket = null;
  const send = (words) => { if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify(words)); };
  const input = (data) => {
    if (socket?.readyState !== WebSocket.OPEN) return;
    const message = new Uint8Array(data.length + 1);
    message.set(data, 1); // channel 0: standard input
    socket.send(message);
  };
  term.onData((text) => input(encoder.encode(text)));
  term.onBinary((text) => input(Uint8Array.from(text, (c) => c.charCodeAt(0))));
  term.onResize(({ rows, cols }) => send({ resize: [rows, cols] }));
  new ResizeObserver(() => fit.fit()).observe(place);
  // The keyboard must find a way out, since Tab belongs to the program.
  term.attachCustomKeyEventHandler((e) => {
    if (e.type === "keydown" && e.key === "Escape" && e.ctrlKey && e.shiftKey) { (stop.hidden ? start : stop).focus(); return false; }
    return true;
  });

  const ended = (words) => {
    state.textContent = words;
    start.disabled = false;
    stop.hidden = true;
    socket = null;
  };
  // Splits like the forms do: white space, quotes and backslashes.
  const split = (line) => {
    const out = [];
    let word = "", inside = false, quote = "";
    for (let i = 0; i < line.length; i++) {
      const c = line[i];
      if (c === "\\" && quote !== "'" && i + 1 < line.length) { word += line[++i]; inside = true; }
      else if (quote) { if (c === quote) quote = ""; else word += c; }
      else if (c === "'" || c === '"') { quote = c; inside = true; }
      else if (/\s/.test(c)) { if (inside) out.push(word); word = ""; inside = false; }
      else { word += c; inside = true; }
    }
    if (inside) out.push(word);
    return out;
  };
  form.addEventListener("submit", (e) => {
    e.preventDefault();
    if (socket) return;
    const command = split(document.getElementById("term-command").value);
    if (!command.length) { state.textContent = "write a command first"; return; }
    start.disabled = true;
    state.textContent = "connecting …";
    const address = new URL(place.dataset.exec, location.href);
    address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
    socket = new WebSocket(address);
    socket.binaryType = "arraybuffer";
    let words = "disconnected";
    socket.onopen = () => {
      fit.fit();
      send({ command, tty: true, rows: term.rows, cols: term.cols });
      state.textContent = "connected";
      stop.hidden = false;
      term.reset();
      term.focus();
    };
    socket.onmessage = (m) => {
      if (typeof m.data === "string") {
        try {
          const said = JSON.parse(m.data);
          if (said.exit) words = said.exit.error ? "could not be started: " + said.exit.error : said.exit.signal ? "ended by signal " + said.exit.signal : "ended with exit code " + (said.exit.code ?? said.exit.exit_code ?? 0);
          else if (said.error || said.detail) words = said.detail || said.error;
        } catch { /* not ours */ }
        return;
      }
      const message = new Uint8Array(m.data);
      if (message[0] === 1 || message[0] === 2) term.write(message.subarray(1));
    };
    socket.onclose = (e) => ended(e.reason || words);
  });
  stop.addEventListener("click", () => socket?.close(1000));
  window.addEventListener("pagehide", () => socket?.close());
})();
