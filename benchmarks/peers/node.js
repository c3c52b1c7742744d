// A bare Node.js client on `ws`: JSON.parse and a callback, as the JavaScript SDK has it inside.
// node node.js PORT SIZE HOW
"use strict";
const WebSocket = require("ws");

const [port, size, how] = process.argv.slice(2);
const WARM_UP = Math.min(Number(size), 20000);

const callbacks = {
  count: 0,
  characters: 0,
  onContent(delta, conversationId) {
    this.count += 1;
    this.characters += delta.length;
  },
};

const ws = new WebSocket(`ws://127.0.0.1:${port}/ai/ws`, { perMessageDeflate: false });
const chatbots = [`deltas:${WARM_UP}:many`, `deltas:${size}:${how}`];
let start;

function begin() {
  ws.send(JSON.stringify({ type: "start_chat", chatbot: chatbots.shift() }));
}

ws.on("open", begin);
ws.on("message", (data) => {
  const message = JSON.parse(data.toString());
  switch (message.type) {
    case "content":
      callbacks.onContent(message.delta, message.conversation_id);
      break;
    case "chat_started":
      callbacks.count = 0;
      start = process.hrtime.bigint();
      ws.send(
        JSON.stringify({ type: "message", conversation_id: message.conversation_id, content: "go" })
      );
      break;
    case "done": {
      const seconds = Number(process.hrtime.bigint() - start) / 1e9;
      if (chatbots.length) {
        begin();
      } else {
        if (callbacks.count !== Number(size)) throw new Error("deltas are missing");
        console.log(JSON.stringify({ units: callbacks.count, seconds }));
        ws.terminate();
      }
    }
  }
});
