"use strict";
// Passkeys: the server's options go to the browser, the browser's answer goes back.
(() => {
  const bytes = (s) => Uint8Array.from(atob(s.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
  const text = (b) => btoa(String.fromCharCode(...new Uint8Array(b))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
  const state = document.getElementById("passkey-state");
  const say = (words) => { if (state) { state.hidden = !words; state.textContent = words; } };
  const post = async (address, body) => {
    const answer = await fetch(address, { method: "POST", headers: { "Content-Type": "application/json", "HX-Request": "true" }, body: JSON.stringify(body), credentials: "same-origin" });
    const got = await answer.json().catch(() => ({ problem: "The server refused that." }));
    if (!answer.ok) throw new Error(got.problem || "The server refused that.");
    return got;
  };
  const readable = (options) => {
    const o = options.publicKey || options;
    o.challenge = bytes(o.challenge);
    if (o.user) o.user.id = bytes(o.user.id);
    for (const list of [o.excludeCredentials, o.allowCredentials]) for (const c of list || []) c.id = bytes(c.id);
    return o;
  };
  const written = (credential) => {
    const r = credential.response;
    const response = { clientDataJSON: text(r.clientDataJSON) };
    for (const part of ["attestationObject", "authenticatorData", "signature", "userHandle"]) if (r[part]) response[part] = text(r[part]);
    if (r.getTransports) response.transports = r.getTransports();
    return { id: credential.id, rawId: text(credential.rawId), type: credential.type, authenticatorAttachment: credential.authenticatorAttachment || undefined, clientExtensionResults: credential.getClientExtensionResults(), response };
  };
  const trouble = (e) => say(e.name === "NotAllowedError" ? "It was cancelled, or took too long." : e.name === "InvalidStateError" ? "This device has a passkey for you already." : e.message);

  for (const button of document.querySelectorAll("[data-passkey]")) {
    if (!window.PublicKeyCredential) { button.disabled = true; say("This browser has no passkeys, or the page did not come over a safe connection."); continue; }
    button.addEventListener("click", async () => {
      try {
        say("Waiting for your device …");
        const begun = await post(button.dataset.passkey + "/begin", {});
        const credential = await navigator.credentials.get({ publicKey: readable(begun.options) });
        const done = await post(button.dataset.passkey + "/finish", { next: button.dataset.next, response: written(credential) });
        location.assign(done.location);
      } catch (e) { trouble(e); }
    });
  }

  for (const form of document.querySelectorAll("[data-add-passkey]")) {
    form.addEventListener("submit", async (e) => {
      e.preventDefault();
      if (!window.PublicKeyCredential) { say("This browser has no passkeys, or the page did not come over a safe connection."); return; }
      try {
        say("Waiting for your device …");
        const begun = await post("/account/passkeys/begin", { password: form.elements.current.value });
        const credential = await navigator.credentials.create({ publicKey: readable(begun.options) });
        const done = await post("/account/passkeys/finish", { label: form.elements.label.value, response: written(credential) });
        if (!done.codes || !done.codes.length) { location.assign(done.location); return; }
        say("The passkey is added. Your recovery codes, shown only now:");
        const list = document.createElement("ul");
        list.className = "codes";
        for (const code of done.codes) { const li = document.createElement("li"); li.textContent = code; list.append(li); }
        form.after(list);
        form.reset();
      } catch (e) { trouble(e); }
    });
  }
})();
