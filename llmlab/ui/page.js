// The page's own script: language, keyboard, links. The live panel brings its own.
(() => {
  const words = WORDS;
  const chinese = (navigator.language || "").toLowerCase().startsWith("zh");
  const mark = () => document.body.classList.toggle("lang-zh", chinese);
  document.body ? mark() : addEventListener("DOMContentLoaded", mark);
  document.documentElement.lang = chinese ? "zh-CN" : "en";

  const press = (id) => document.querySelector(`#${id}`)?.click();
  addEventListener("keydown", (e) => {
    if (e.key === "Enter" && (e.ctrlKey || e.metaKey)) {
      e.preventDefault();
      // A text box tells its value when it loses focus; without this the run would miss the last words.
      document.activeElement?.blur?.();
      setTimeout(() => press("run"), 50);
    } else if (e.key === "Escape") {
      press("stop");
    }
  });

  const whole = (query) => location.origin + location.pathname + (query || "");
  window.llmlabLink = (query) => {
    window.llmlabReady = true;
    if (query) history.replaceState(null, "", location.pathname + query);
    return query ? whole(query) : "";
  };
  window.llmlabCopy = async (query) => {
    const link = window.llmlabLink(query);
    try {
      await navigator.clipboard.writeText(link);
    } catch {
      // Without https browsers offer no clipboard; the link stands in the address bar and in the Reproduce tab.
    }
    const button = document.querySelector("#copy-link");
    const old = button.textContent;
    button.textContent = words[chinese ? "zh-CN" : "en"].copied;
    setTimeout(() => (button.textContent = old), 1500);
    return link;
  };
})();
