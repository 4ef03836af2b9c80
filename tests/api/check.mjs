// Parses an AsyncAPI document with AsyncAPI's own parser, and fails on any error: node check.mjs FILE
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const { Parser } = createRequire(`${process.cwd()}/`)('@asyncapi/parser');
const ERROR = 0;
const { document, diagnostics } = await new Parser().parse(readFileSync(process.argv[2], 'utf8'));
const errors = diagnostics.filter(({ severity }) => severity === ERROR);
for (const { path, message } of errors) console.error(path.join('/'), message);
if (!document || errors.length) process.exit(1);
console.log(document.allMessages().length, 'messages in', document.allChannels().length, 'channels');
