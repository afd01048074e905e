// Anthropic's own client: messages, streams, thinking, a tool loop, counts, errors.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const Anthropic = createRequire(`${process.env.MODULES}/`)("@anthropic-ai/sdk").default;
const client = new Anthropic({ baseURL: process.argv[2], apiKey: "EMPTY", maxRetries: 0 });
const question = { role: "user", content: "What is the weather in Paris?" };
const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const common = { model: "agent", max_tokens: 512, tools: [{ name: "weather", input_schema: schema }] };

const messages = [question];
const texts = [];
while (messages.at(-1).role === "user") {
  const stream = client.messages.stream({ ...common, messages });
  stream.on("text", (text) => texts.push(text));
  const message = await stream.finalMessage();
  messages.push({ role: "assistant", content: message.content });
  const calls = message.content.filter((block) => block.type === "tool_use");
  assert.equal(message.stop_reason, calls.length ? "tool_use" : "end_turn");
  if (calls.length) {
    assert.deepEqual(calls[0].input, { city: "Paris" });
    messages.push({ role: "user", content: [{ type: "tool_result", tool_use_id: calls[0].id, content: "sunny" }] });
  }
}
assert.equal(texts.join(""), "I will look it up.It is sunny.");
assert.ok(texts.length > 10);

const thinking = { type: "enabled", budget_tokens: 1024 };
const thoughtful = await client.messages.create({ ...common, max_tokens: 2048, messages: [question], thinking });
assert.deepEqual(thoughtful.content.map((block) => block.type).slice(0, 1), ["thinking"]);
assert.ok((await client.messages.countTokens({ model: "agent", messages: [question] })).input_tokens > 10);
await assert.rejects(client.messages.create({ ...common, messages: [question], model: "absent" }), { status: 404 });
console.log("done");
