/** Where one writes: text, files, model, agent. */

import {button, h, select, show, wrong} from './dom.js';
import {newKey} from '../longrun/key.js';
import {ask} from './session.js';
import {problem} from './format.js';

/**
 * @param {{label: string, files: boolean, submit: (given: {text: string, files: File[], model: string, agent: string, key: string}) => Promise<void>}} options
 */
export function composer({label, files, submit}) {
  const text = h('textarea', {id: 'prompt', rows: 2, required: true, placeholder: 'What is to be done?', 'aria-label': label});
  const model = select({'aria-label': 'Model', id: 'model'}, [['', 'Default model']]);
  const agent = select({'aria-label': 'Agent', id: 'agent'}, [['', 'Default agent']]);
  const chooser = h('input', {type: 'file', id: 'files', multiple: true, class: 'unseen', tabindex: '-1', 'aria-label': 'Files'});
  const chosen = h('ul', {class: 'chips', 'aria-label': 'Chosen files'});
  const said = wrong();
  const send = h('button', {class: 'primary', id: 'send'}, 'Send');
  /** @type {File[]} */
  let picked = [];
  /** The same again is no other: its answer may have been lost. */
  let last = {given: '', key: ''};

  function showFiles() {
    show(chosen, picked.map((file) => h('li', {}, file.name, button('×', () => {
      picked = picked.filter((each) => each !== file);
      showFiles();
    }, {'aria-label': `Leave out ${file.name}`}))));
  }

  chooser.addEventListener('change', () => {
    picked = [...picked, ...chooser.files];
    chooser.value = '';
    showFiles();
  });
  text.addEventListener('keydown', (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    element.requestSubmit();
  });
  const element = h('form', {class: 'composer'},
    text, chosen, said,
    h('div', {class: 'row'},
      files && [chooser, button('Attach files', () => chooser.click(), {class: 'plain'})],
      model, agent, h('span', {class: 'grow'}), send));
  element.addEventListener('submit', async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (!text.value.trim() || send.disabled) return;
    send.disabled = text.readOnly = true;
    said.textContent = '';
    const given = JSON.stringify([text.value, model.value, agent.value, picked.map((file) => [file.name, file.size, file.lastModified])]);
    if (given !== last.given) last = {given, key: newKey()};
    try {
      await submit({text: text.value, files: picked, model: model.value, agent: agent.value, key: last.key});
      last.given = '';
      text.value = '';
      picked = [];
      showFiles();
    } catch (error) {
      said.textContent = problem(error);
    }
    send.disabled = text.readOnly = false;
    if (document.activeElement === document.body) text.focus();
  });
  void offer(model, agent);
  return {element, text, focus: () => text.focus()};
}

/** @param {any} model @param {any} agent */
async function offer(model, agent) {
  const [{models}, {agents}] = await Promise.all([
    ask('billing/available-models').catch(() => ({models: []})),
    ask('agents', {query: {limit: 100}}).catch(() => ({agents: []})),
  ]);
  for (const each of models) model.append(h('option', {value: each.id, disabled: !each.is_available}, each.display_name));
  for (const each of agents) agent.append(h('option', {value: each.agent_id}, each.name));
}
