/** `node hook_in_node.js JSON`: the existing hook with an EventSource package; prints what it saw. */

import {EventSource} from './vendor/eventsource/dist/index.js';
import {follow} from './existing_hook.js';

const alive = setInterval(() => {}, 1000); // this package lets a process end while it waits to connect again
console.log(JSON.stringify(await follow({...JSON.parse(process.argv[2]), EventSource})));
clearInterval(alive);
