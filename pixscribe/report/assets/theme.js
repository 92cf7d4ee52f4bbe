"use strict";
// before anything is drawn, so that a page that was made dark does not flash
try {
  const theme = localStorage.getItem("pixscribe-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // a page from disk may have no storage
}
