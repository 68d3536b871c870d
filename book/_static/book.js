window.addEventListener("load", () => {
  // "/" opens the search, as Ctrl+K does: the field that Sphinx would jump to is in a closed dialog.
  Documentation.focusSearchBar = () => document.querySelector(".search-button__button")?.click();

  // Mathematics that is wider than the page scrolls in its own box: let the keyboard reach it.
  window.MathJax?.startup?.promise?.then(() => {
    for (const box of document.querySelectorAll('mjx-container[display="true"]'))
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  });
});
