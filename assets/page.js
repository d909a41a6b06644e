() => {
  // Runs once, after Gradio has mounted the page: theme, keys, deep links, phones, and what its components lack.
  const PAGES = ["data", "train", "runs", "chat", "export", "doctor"];
  const THEME = "qlora-studio-theme";
  const NARROW = 800;

  const applyTheme = (dark) => {
    document.body.classList.toggle("dark", dark);
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
  };
  const kept = localStorage.getItem(THEME);
  if (kept) applyTheme(kept === "dark");
  window.studioSwitchTheme = () => {
    const dark = !document.body.classList.contains("dark");
    applyTheme(dark);
    localStorage.setItem(THEME, dark ? "dark" : "light");
  };

  const open = (page) => document.getElementById(`tab-${page}-button`)?.click();
  const linked = () => location.hash.slice(1);
  addEventListener("keydown", (event) => {
    const page = PAGES[Number(event.key) - 1];
    if (event.altKey && !event.ctrlKey && page) {
      event.preventDefault();
      open(page);
    }
  });
  const follow = () => {
    const button = document.querySelector('#pages > .tab-wrapper [role="tab"][aria-selected="true"]');
    const page = button?.id.replace(/^tab-|-button$/g, "");
    if (page && PAGES.includes(page) && linked() !== page) history.replaceState(null, "", `#${page}`);
  };
  addEventListener("hashchange", ({ newURL }) => {
    const page = new URL(newURL).hash.slice(1); // by now `follow` may have written the open page over it
    if (PAGES.includes(page)) open(page);
  });

  // A tab that nobody sees asks the studio less often.
  document.addEventListener("visibilitychange", () => {
    document.getElementById(`signal-${document.visibilityState}`)?.click();
  });

  // A browser drops the comma from a number field, and 0,5 would become 05. It is the decimal point there, and where
  // only whole numbers go it sets thousands apart.
  const point = (input, text) => text.replaceAll(",", Number.isInteger(Number(input.step)) ? "" : ".");
  document.addEventListener(
    "beforeinput",
    (event) => {
      const input = event.target;
      const text = event.data ?? event.dataTransfer?.getData("text/plain");
      if (input.type !== "number" || !text?.includes(",")) return;
      event.preventDefault();
      document.execCommand("insertText", false, point(input, text));
    },
    true,
  );

  // Copying a message takes its text as it was written, however it is laid out.
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("[data-copy]");
    if (!button) return;
    navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });

  // A conversation stays at its end, unless somebody has scrolled up to read.
  const stays = new Map();
  document.addEventListener(
    "scroll",
    ({ target }) => {
      if (target.classList?.contains("qs-conversation")) {
        stays.set(target.ariaLabel, target.scrollHeight - target.scrollTop - target.clientHeight < 40);
      }
    },
    true,
  );
  const scrollConversations = () => {
    document.querySelectorAll(".qs-conversation").forEach((pane) => {
      if (stays.get(pane.ariaLabel) !== false) pane.scrollTop = pane.scrollHeight;
    });
  };

  // Gradio leaves the send button of a text box without a name.
  const nameButtons = () => {
    for (const [part, name] of [["submit", "Send"], ["stop", "Stop the answer"]]) {
      document.querySelectorAll(`#chat-message .${part}-button`).forEach((button) => {
        if (!button.ariaLabel) button.ariaLabel = name;
      });
    }
  };

  // Every open tab holds one of the browser's six connections to the studio; with too many, all of them wait.
  const channel = new BroadcastChannel("qlora-studio");
  const others = new Set();
  const self = crypto.randomUUID();
  channel.onmessage = ({ data }) => {
    if (data.here) others.add(data.here);
    if (data.asks) channel.postMessage({ here: self });
    if (data.gone) others.delete(data.gone);
    document.documentElement.dataset.crowded = others.size >= 3 ? "1" : "";
  };
  channel.postMessage({ asks: true, here: self });
  addEventListener("pagehide", () => channel.postMessage({ gone: self }));

  if (PAGES.includes(linked())) open(linked());
  const tabs = document.querySelector("#pages");
  if (tabs) {
    new MutationObserver(() => {
      follow();
      nameButtons();
      scrollConversations();
    }).observe(tabs, { subtree: true, childList: true, characterData: true, attributeFilter: ["aria-selected"] });
  }
  nameButtons();
  if (innerWidth < NARROW) document.querySelector(".sidebar.open .toggle-button")?.click();

  // The studio's first answer fills every field, over whatever was typed before it came. So nothing can be until then.
  const openToHands = () => {
    if (tabs) tabs.inert = false;
    document.documentElement.dataset.ready = "1";
  };
  if (tabs) tabs.inert = true;
  window.studioFilled = openToHands;
  setTimeout(openToHands, 5000);
}
