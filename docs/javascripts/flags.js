// A flag may be searched for as it is typed: to the search a dash in front means "without this word".
document.addEventListener(
  "input",
  ({ target }) => {
    if (target instanceof HTMLInputElement && target.matches(".md-search__input")) {
      const plain = target.value.replace(/(^|\s)-+(?=\w)/g, "$1");
      if (plain !== target.value) target.value = plain;
    }
  },
  true,
);
