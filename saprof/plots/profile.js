// A click on a layer zooms every icicle of its network to that layer; a click on the network shows all again.
const boxes = (icicle) => [...icicle.querySelectorAll(".box")];
const twins = (box) =>
  [...document.querySelectorAll(`.icicle[data-network="${box.parentNode.dataset.network}"]`)].flatMap((icicle) =>
    boxes(icicle).filter((one) => one.dataset.key === box.dataset.key)
  );

function zoom(icicle, start, end) {
  for (const box of boxes(icicle)) {
    const edges = [+box.dataset.start, +box.dataset.end].map((x) => (x - start) / (end - start));
    const [left, right] = edges.map((x) => Math.min(Math.max(x, 0), 1));
    box.style.left = `${100 * left}%`;
    box.style.width = `${100 * (right - left)}%`;
    box.hidden = right <= left;
    box.style.display = box.hidden ? "none" : "";
  }
  icicle.closest(".icicles").classList.toggle("zoomed", end - start < 1);
}

document.addEventListener("click", (event) => {
  const box = event.target.closest(".box");
  if (!box) return;
  for (const one of twins(box)) zoom(one.parentNode, +one.dataset.start, +one.dataset.end);
});
for (const [type, on] of [["mouseover", true], ["mouseout", false]])
  document.addEventListener(type, (event) => {
    const box = event.target.closest(".box");
    if (box) for (const one of twins(box)) one.classList.toggle("same", on);
  });
