/** Agents, and the versions of one. */

import {button, field, form as formOf, h, link, pre, show} from '../dom.js';
import {date, short, shortDate} from '../format.js';
import {badge, facts, heading, numbered, pages} from '../listing.js';
import {ask} from '../session.js';
/** @import {Visit} from '../main.js' */

/** @param {Visit} visit */
export function agentsPage({place, title, go}) {
  title('Agents');
  const list = pages('Agents', ['Name', 'Description', 'Version', 'Changed'], numbered('agents', 'agents', (agent) => [
    link(`/agents/${agent.agent_id}`, agent.name), short(agent.description ?? '', 120), `${agent.version_count}`, shortDate(agent.updated_at),
  ]), 'There is no agent yet.');
  const form = h('div');
  const add = button('New agent', () => show(form, editor({name: '', description: '', system_prompt: ''}, async (given) => {
    const made = await ask('agents', {method: 'POST', json: given});
    go(`/agents/${made.agent_id}`);
  })), {class: 'primary'});
  place.append(heading('Agents', add), form, list.element);
  return list.load();
}

/** @param {any} agent @param {(given: Record<string, string>) => Promise<void>} save */
function editor(agent, save) {
  const name = h('input', {value: agent.name, required: true, maxlength: '255'});
  const description = h('input', {value: agent.description ?? ''});
  const prompt = h('textarea', {rows: 10, value: agent.system_prompt ?? ''});
  return formOf([field('Name', name), field('Description', description), field('Instructions', prompt, 'A change of these makes a version.')], 'Save',
    () => save({name: name.value, description: description.value, system_prompt: prompt.value}));
}

/** @param {Visit} visit */
export function agentPage({place, title, signal, args: [agentId]}) {
  async function draw() {
    const [agent, versions] = await Promise.all([ask(`agents/${agentId}`, {signal}), ask(`agents/${agentId}/versions`, {signal, query: {limit: 100}})]);
    if (signal.aborted) return;
    title(agent.name);
    const tools = Object.entries(agent.agentpress_tools ?? {}).filter(([, on]) => on === true || /** @type {any} */ (on)?.enabled).map(([name]) => name);
    const servers = [...agent.configured_mcps, ...agent.custom_mcps].map((each) => each.name ?? each.qualifiedName);
    const form = h('div');
    const edit = button('Edit', () => show(form, editor(agent, async (given) => {
      await ask(`agents/${agentId}`, {method: 'PUT', json: given});
      await draw();
    })));
    show(place, heading(agent.name, edit), form,
      facts([['Description', agent.description || '—'], ['Default', agent.is_default ? 'yes' : 'no'], ['Tools', tools.join(', ') || 'none'], ['MCP servers', servers.join(', ') || 'none'], ['Changed', date(agent.updated_at)]]),
      h('h2', {}, 'Instructions'), pre('Instructions', agent.system_prompt || '—', 'wrap'),
      h('h2', {}, 'Versions'),
      h('ol', {class: 'versions', reversed: true}, versions.map((/** @type {any} */ version) => h('li', {},
        h('details', {}, h('summary', {}, `${version.version_name} `, h('span', {class: 'quiet'}, `${shortDate(version.created_at)} `), version.version_id === agent.current_version_id ? badge('current') : ''),
          pre(`Instructions of ${version.version_name}`, version.system_prompt || '—', 'wrap'),
          version.version_id !== agent.current_version_id && button('Work with this one', async () => {
            await ask(`agents/${agentId}/versions/${version.version_id}/activate`, {method: 'PUT'});
            await draw();
          }))))));
  }
  return draw();
}
