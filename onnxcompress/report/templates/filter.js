"use strict";
{
  const words = document.getElementById("words");
  const outcome = document.getElementById("outcome");
  const count = document.getElementById("count");
  const rows = [...document.querySelectorAll("#layers tbody tr")];
  const filter = () => {
    const wanted = words.value.toLowerCase();
    let shown = 0;
    for (const row of rows) {
      const fits = (!outcome.value || row.dataset.outcome === outcome.value)
        && row.textContent.toLowerCase().includes(wanted);
      row.hidden = !fits;
      shown += fits ? 1 : 0;
    }
    count.textContent = `${shown} of ${rows.length}`;
  };
  words.addEventListener("input", filter);
  outcome.addEventListener("change", filter);
  filter();
}
