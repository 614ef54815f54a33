"use strict";
// What pages do beyond plain HTML: colours, times, live parts, the inbox, the editor, the output. Texts from sandboxes are only ever set as text, or come
// as HTML that the server escaped.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const remember = (key, value) => { try { value === null ? localStorage.removeItem(key) : localStorage.setItem(key, value); } catch { /* storage is off */ } };
  const recall = (key) => { try { return localStorage.getItem(key); } catch { return null; } };

  // --- colours
  const themes = ["auto", "light", "dark"];
  const showTheme = () => {
    const now = document.documentElement.dataset.theme || "auto";
    for (const b of all("[data-theme-switch]")) {
      b.textContent = "Theme: " + now;
      b.setAttribute("aria-label", now === "auto" ? "Colours: as the system has them" : "Colours: " + now);
    }
  };
  document.addEventListener("click", (e) => {
    if (!e.target.closest("[data-theme-switch]")) return;
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme || "auto") + 1) % themes.length];
    if (next === "auto") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = next;
    remember("theme", next === "auto" ? null : next);
    showTheme();
  });
  showTheme();

  // --- menu of narrow windows
  const menu = byId("menu-button");
  if (menu) menu.addEventListener("click", () => {
    menu.setAttribute("aria-expanded", String(byId("side").classList.toggle("open")));
  });

  // --- times
  const ago = (ms) => {
    const d = Math.abs(ms) / 1000;
    const text = d < 60 ? Math.floor(d) + " s" : d < 3600 ? Math.floor(d / 60) + " min" : d < 172800 ? Math.floor(d / 3600) + " h" : Math.floor(d / 86400) + " days";
    return ms < 0 ? "in " + text : d < 5 ? "just now" : text + " ago";
  };
  const renewTimes = () => {
    for (const t of all("time[data-ago]")) {
      const text = ago(Date.now() - Date.parse(t.dateTime));
      if (t.textContent !== text) t.textContent = text;
    }
  };
  setInterval(renewTimes, 10000);

  // --- copying
  document.addEventListener("click", async (e) => {
    const button = e.target.closest("[data-copy]");
    if (!button) return;
    const field = byId(button.dataset.copy);
    field.select();
    try { await navigator.clipboard.writeText(field.value); button.textContent = "Copied"; } catch { button.textContent = "Press Ctrl+C"; }
  });

  const say = (text) => {
    const note = document.createElement("div");
    note.className = "note bad";
    note.textContent = text;
    byId("toast")?.append(note);
    setTimeout(() => note.remove(), 8000);
  };
  document.addEventListener("htmx:responseError", () => say("The server refused that. Load the page again to see how things stand."));
  document.addEventListener("htmx:sendError", () => say("The server does not answer."));

  // --- live parts
  const busy = (el) => el.contains(document.activeElement) && document.activeElement.matches("input, textarea, select") || el.querySelector("details[open]") !== null;
  const fragment = async (address) => {
    const answer = await fetch(address, { headers: { "HX-Request": "true" }, credentials: "same-origin" });
    if (answer.status === 401) { location.href = "/sign-in"; return null; }
    if (!answer.ok) return null;
    return new DOMParser().parseFromString(await answer.text(), "text/html").body;
  };
  const renew = async (el) => {
    if (busy(el)) { el.dataset.stale = "yes"; return; }
    delete el.dataset.stale;
    const fresh = await fragment(el.dataset.refresh);
    if (!fresh || busy(el)) return;
    const at = document.activeElement && el.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    el.replaceChildren(...fresh.childNodes);
    if (window.htmx) htmx.process(el);
    if (at) all("a", el).find((a) => a.getAttribute("href") === at)?.focus({ preventScroll: true });
  };
  document.addEventListener("focusout", () => setTimeout(() => {
    for (const el of all("[data-refresh][data-stale]")) renew(el);
  }, 300));

  const waiting = new Map();
  const later = (key, delay, work) => {
    if (waiting.has(key)) return;
    waiting.set(key, setTimeout(() => { waiting.delete(key); work(); }, delay));
  };
  const renewCounts = async () => {
    const answer = await fetch("/counts", { headers: { "HX-Request": "true" } });
    if (answer.status === 401) { location.href = "/sign-in"; return; }
    if (!answer.ok) return;
    const counts = await answer.json();
    for (const badge of all(".nav [data-count]")) {
      const n = counts[badge.dataset.count];
      badge.textContent = String(n);
      badge.hidden = !n;
      badge.classList.toggle("hot", n > 0 && (badge.dataset.count === "review" || badge.dataset.count === "proposed"));
    }
  };
  const happened = (event) => {
    later("counts", 500, renewCounts);
    for (const el of all("[data-on]")) {
      if (!el.dataset.on.split(" ").includes(event.type)) continue;
      if (el.dataset.subject && event.subject && event.subject !== el.dataset.subject) continue;
      later(el, 350, () => el.dataset.inbox ? mergeInbox(el) : renew(el));
    }
  };
  const everything = () => {
    later("counts", 0, renewCounts);
    for (const el of all("[data-on]")) later(el, 0, () => el.dataset.inbox ? mergeInbox(el) : renew(el));
  };
  let source = null;
  const listen = () => {
    if (source || !document.body.dataset.live || document.hidden) return;
    source = new EventSource(document.body.dataset.live);
    source.onmessage = (m) => { try { happened(JSON.parse(m.data)); } catch { /* not ours */ } };
    source.addEventListener("end", () => { source.close(); source = null; renewCounts(); }); // signed out elsewhere: the page goes to the door
    let lost = false;
    source.onerror = () => { lost = true; if (source && source.readyState === EventSource.CLOSED) { source = null; setTimeout(listen, 5000); } };
    source.onopen = () => { if (lost) everything(); lost = false; };
  };
  document.addEventListener("visibilitychange", () => { // browsers allow few streams to one server: a tab that nobody sees gives its own back
    if (document.hidden) { source?.close(); source = null; return; }
    if (!source) { listen(); everything(); }
  });
  listen();
  window.addEventListener("pagehide", () => { source?.close(); source = null; });
  window.addEventListener("pageshow", (e) => { if (e.persisted) { listen(); everything(); } });

  // --- the inbox: what is open or being written stays, everything else follows the server
  const engaged = (entry) => entry.contains(document.activeElement) || entry.querySelector(".panel form") !== null;
  const mergeInbox = async (inbox) => {
    const fresh = await fragment(inbox.dataset.inbox);
    if (!fresh) return;
    for (const part of all("[data-part]", fresh)) {
      const here = inbox.querySelector(`[data-part="${part.dataset.part}"]`);
      if (!here) { inbox.prepend(part); if (window.htmx) htmx.process(part); continue; }
      mergeList(here.querySelector("[data-list]"), part.querySelector("[data-list]"));
    }
    for (const here of all("[data-part]", inbox)) {
      if (fresh.querySelector(`[data-part="${here.dataset.part}"]`)) continue;
      mergeList(here.querySelector("[data-list]"), document.createElement("div"));
      if (!here.querySelector("[data-entry]")) here.remove();
    }
  };
  const mergeList = (list, fresh) => {
    const incoming = all("[data-entry]", fresh);
    const kept = new Set(incoming.map((e) => e.id)); // before they are moved
    let before = null;
    for (const entry of incoming) {
      const old = byId(entry.id);
      if (!old) {
        const next = before ? before.nextSibling : list.firstChild;
        list.insertBefore(entry, next);
        if (window.htmx) htmx.process(entry);
        before = entry;
        continue;
      }
      if (old.dataset.version !== entry.dataset.version) {
        const summary = old.querySelector("[data-summary]");
        const focused = summary.contains(document.activeElement);
        summary.replaceChildren(...entry.querySelector("[data-summary]").childNodes);
        if (window.htmx) htmx.process(summary);
        if (focused) summary.querySelector("[data-open]")?.focus({ preventScroll: true });
        // That it was counted again changes nothing about the rule that is being written; the decision is about the group as it is now.
        old.dataset.version = entry.dataset.version;
      }
      before = old;
    }
    for (const old of all("[data-entry]", list)) {
      if (kept.has(old.id) || old.querySelector(".panel [data-test=decided]")) continue;
      if (!engaged(old)) { old.remove(); continue; }
      if (old.classList.contains("gone")) continue;
      old.classList.add("gone");
      const note = document.createElement("p");
      note.className = "note warn";
      note.setAttribute("role", "status");
      note.textContent = "This has been decided by somebody else, or waits no more.";
      old.querySelector(".panel").prepend(note);
    }
    const nothing = list.querySelector("[data-empty]");
    const some = list.querySelector("[data-entry]") !== null;
    if (nothing && some) nothing.remove();
    const freshNothing = fresh.querySelector("[data-empty]");
    if (freshNothing && !some && !list.querySelector("[data-empty]")) list.append(freshNothing);
  };

  const inbox = byId("inbox");
  if (inbox) {
    const on = byId("keys-on");
    on.checked = recall("keys") !== "off";
    on.addEventListener("change", () => remember("keys", on.checked ? null : "off"));
    const entries = () => all("[data-entry]", inbox);
    const current = () => document.activeElement?.closest?.("[data-entry]");
    const open = (entry, then) => {
      const panel = entry.querySelector(".panel");
      if (panel.childElementCount) { then(); return; }
      const opened = (e) => { if (e.target !== panel) return; panel.removeEventListener("htmx:afterSettle", opened); then(); };
      panel.addEventListener("htmx:afterSettle", opened);
      entry.querySelector("[data-open]")?.click();
    };
    document.addEventListener("keydown", (e) => {
      if (!on.checked || e.ctrlKey || e.metaKey || e.altKey || e.target.closest("input, textarea, select, [contenteditable]")) return;
      const list = entries();
      const now = current();
      const at = now ? list.indexOf(now) : -1;
      switch (e.key) {
        case "j": list[Math.min(at + 1, list.length - 1)]?.focus(); break;
        case "k": list[Math.max(at - 1, 0)]?.focus(); break;
        case "Enter": if (!now || e.target !== now) return; open(now, () => now.querySelector(".panel textarea, .panel button")?.focus()); break;
        case "a": if (!now) return; open(now, () => (now.querySelector("[data-allow]") || now.querySelector(".panel button"))?.focus()); break;
        case "d": if (!now) return; open(now, () => now.querySelector("[data-deny]")?.focus()); break;
        case "Escape": if (!now) return; now.focus(); break;
        default: return;
      }
      e.preventDefault();
    });
    document.addEventListener("htmx:afterSwap", (e) => { // after a decision the next entry is at hand
      const entry = e.detail.elt?.closest?.("[data-entry]") || (e.target.matches?.("[data-entry]") ? e.target : null);
      if (entry?.querySelector("[data-test=decided]")) entry.focus();
      else entry?.querySelector("[role=alert]")?.scrollIntoView({ block: "nearest" });
    });
  }

  // --- the editor: line numbers, marks, jumping to a mistake
  for (const box of all("[data-editor]")) {
    const text = box.querySelector("textarea");
    const gutter = box.querySelector(".gutter");
    let lines = 0;
    const number = () => {
      const n = text.value.split("\n").length;
      if (n === lines) return;
      lines = n;
      gutter.replaceChildren(...Array.from({ length: n }, (_, i) => { const s = document.createElement("span"); s.textContent = String(i + 1); return s; }));
    };
    const marks = () => {
      const bad = new Set(all("[data-line]").map((li) => Number(li.dataset.line)));
      [...gutter.children].forEach((s, i) => s.classList.toggle("mark", bad.has(i + 1)));
    };
    text.addEventListener("input", number);
    text.addEventListener("scroll", () => { gutter.scrollTop = text.scrollTop; });
    text.addEventListener("keydown", (e) => {
      if (e.key !== "Enter" || e.shiftKey || e.ctrlKey || e.altKey || e.metaKey || e.isComposing) return;
      const start = text.value.lastIndexOf("\n", text.selectionStart - 1) + 1;
      const indent = /^[ ]*(- )?/.exec(text.value.slice(start, text.selectionStart))[0].replace("-", " ");
      if (!indent) return;
      e.preventDefault();
      text.setRangeText("\n" + indent, text.selectionStart, text.selectionEnd, "end");
      text.dispatchEvent(new Event("input", { bubbles: true }));
    });
    number();
    marks();
    document.addEventListener("htmx:afterSwap", () => { number(); marks(); });
    document.addEventListener("click", (e) => {
      const jump = e.target.closest("[data-goto]");
      if (!jump) return;
      const before = text.value.split("\n").slice(0, Number(jump.dataset.goto) - 1);
      const at = before.reduce((sum, line) => sum + line.length + 1, 0) + Math.max(Number(jump.dataset.column) - 1, 0);
      text.focus();
      text.setSelectionRange(at, at);
      text.scrollTop = Math.max(0, (Number(jump.dataset.goto) - 5) * 20);
    });
  }

  // --- the output of a main command: text, added as it comes
  const output = byId("output");
  if (output && output.dataset.output) {
    const most = 2 << 20;
    let next = Number(output.dataset.next);
    let live = "liveOutput" in output.dataset;
    let first = true;
    const atEnd = () => output.scrollHeight - output.scrollTop - output.clientHeight < 40;
    output.scrollTop = output.scrollHeight;
    const more = async () => {
      if (document.hidden) { setTimeout(more, 1500); return; }
      let got = false;
      try {
        const answer = await fetch(output.dataset.output + "?after=" + next, { headers: { "HX-Request": "true" } });
        if (!answer.ok) throw new Error(String(answer.status));
        const chunk = await answer.json();
        got = chunk.next > next;
        next = chunk.next;
        live = chunk.live;
        if (chunk.text) {
          const follow = first || atEnd();
          output.append(document.createTextNode(chunk.text));
          while (output.textContent.length > most && output.childNodes.length > 1) output.firstChild.remove();
          if (follow) output.scrollTop = output.scrollHeight;
        }
        first = false;
        byId("output-state").textContent = live ? "live" : "complete";
      } catch { byId("output-state").textContent = "not connected"; setTimeout(more, 4000); return; }
      if (live || got) setTimeout(more, got ? 150 : 800);
    };
    more();
  }
})();
