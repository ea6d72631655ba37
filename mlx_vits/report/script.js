
// Niceties only: the page says and plays everything without them.
"use strict";
for (const take of document.querySelectorAll(".take")) {
  const player = take.querySelector("audio");
  const plot = take.querySelector(".plot");
  const seconds = Number(plot.dataset.seconds);
  const head = document.createElement("i");
  head.className = "head";
  head.hidden = true;
  plot.append(head);

  const follow = () => {
    head.hidden = false;
    head.style.left = `${(100 * player.currentTime) / seconds}%`;
    if (!player.paused) requestAnimationFrame(follow);
  };
  player.addEventListener("play", () => {
    for (const other of document.querySelectorAll("audio")) {
      if (other !== player) other.pause();
    }
    follow();
  });
  player.addEventListener("seeked", follow);

  // A click on the spectrogram plays from there; the keyboard has the player itself.
  plot.classList.add("seekable");
  plot.addEventListener("click", (event) => {
    const box = plot.getBoundingClientRect();
    const at = (seconds * (event.clientX - box.left)) / box.width;
    player.currentTime = Math.min(Math.max(at, 0), player.duration || 0);
    player.play();
  });
}
