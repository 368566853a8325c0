// No JSX, so no build step is needed: `h` is `createElement`.
import { createElement as h, StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import { useChat } from "@ai-sdk/react";

// The chat is that of the URL, so a reload opens it again.
location.hash ||= crypto.getRandomValues(new Uint32Array(4)).join("-");
const id = location.hash.slice(1);

const textOf = ({ parts }) => parts.map(({ type, text }) => (type === "text" ? text : "")).join("");

function Chat({ initial }) {
  const { messages, status, error, sendMessage, stop } = useChat({ id, messages: initial, resume: true });
  const [text, setText] = useState("");
  const isBusy = status === "submitted" || status === "streaming";

  const send = (event) => {
    event.preventDefault();
    if (!text.trim() || isBusy) return;
    sendMessage({ text });
    setText("");
  };

  // `stop` only stops to listen: the answer is a job of the server.
  const end = async () => {
    await fetch(`/api/chat/${id}/stop`, { method: "POST" });
    stop();
  };

  return h(
    "div",
    { "data-status": status },
    h("h1", null, "Chat"),
    h(
      "ol",
      null,
      messages.map((message) => h("li", { key: message.id, "data-role": message.role }, textOf(message))),
    ),
    error && h("p", { role: "alert" }, error.message),
    h(
      "form",
      { onSubmit: send },
      h("input", { "aria-label": "Message", value: text, onChange: ({ target }) => setText(target.value) }),
      isBusy ? h("button", { type: "button", onClick: end }, "Stop") : h("button", null, "Send"),
    ),
  );
}

const initial = await (await fetch(`/api/chat/${id}`)).json();
createRoot(document.getElementById("root")).render(h(StrictMode, null, h(Chat, { initial })));
