"use strict";
// Before the page is drawn, so that it is not drawn twice.
(() => {
  document.documentElement.classList.add("js");
  let theme = null;
  try { theme = localStorage.getItem("theme"); } catch { /* storage is off */ }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
