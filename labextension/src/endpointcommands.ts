/** The commands for endpoints: open, move traffic, canaries, keys, tokens, delete. */
import { ILayoutRestorer } from '@jupyterlab/application';
import { InputDialog, MainAreaWidget, Notification, WidgetTracker } from '@jupyterlab/apputils';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';

import type { Endpoint, ICanarySpec, ITrafficChange } from './api';
import { Args, CommandKit, describe, text } from './commandkit';
import { showSecret } from './components/secret';
import { canaryQuestion, trafficQuestion } from './components/questions';
import { createEndpointWidget, EndpointView } from './endpointview';
import { CommandIDs } from './ids';
import { mlopsIcon } from './icons';
import { asTraffic } from './traffic';

/** Add the commands; tabs of endpoints are restored with the page where `restorer` is given. */
export function addEndpointCommands(kit: CommandKit, restorer: ILayoutRestorer | null): void {
  const { app, mlops, trans } = kit;
  const { api, model } = mlops;
  const { serving } = api;
  const tabs = new WidgetTracker<MainAreaWidget<EndpointView>>({
    namespace: 'jupyter-mlops-endpoints'
  });
  const NAME = trans.__('The endpoint; asked for when it is not given');
  const object = (description: string) => ({ type: 'object' as const, description });
  const described = (
    more: Record<string, string> = {},
    objects: Record<string, ReturnType<typeof object>> = {}
  ) => {
    const { args } = describe({ name: NAME, ...more });
    return { args: { ...args, properties: { ...args.properties, ...objects } } };
  };

  const choose = async (args: Args, question: string): Promise<string> => {
    let name = kit.nameOf('endpoint', args);
    await kit.attempt(trans.__('The endpoints cannot be listed'), async () => {
      if (name) {
        return;
      }
      const page = await serving.list({ limit: 200 });
      const items = page.items.map(item => item.name);
      if (!items.length) {
        Notification.info(trans.__('There are no endpoints.'), { autoClose: 4000 });
        return;
      }
      const choice = await InputDialog.getItem({ title: question, items });
      name = choice.button.accept ? (choice.value ?? '') : '';
    });
    return name;
  };
  /** After something was done: what shows the endpoint reads it again. */
  const refresh = async (name: string) => {
    tabs.filter(tab => tab.content.name === name).forEach(tab => tab.content.reload());
    await model.endpoints.refresh();
  };
  /** Do it, tell when it fails, and read anew; returns whether it was done. */
  const act = async (name: string, what: string, action: () => Promise<unknown>) => {
    const done = await kit.attempt(what, action);
    await refresh(name);
    return done;
  };
  const read = async (name: string): Promise<Endpoint | null> => {
    let endpoint: Endpoint | null = null;
    await kit.attempt(trans.__('Endpoint %1 cannot be read', name), async () => {
      endpoint = await serving.endpoint(name);
    });
    return endpoint;
  };
  const run = async (command: string, args: ReadonlyPartialJSONObject): Promise<boolean> =>
    (await app.commands.execute(command, args)) === true;

  const open = (name: string, page = '', deployment = '') => {
    let widget = tabs.find(one => one.content.name === name);
    if (!widget) {
      const view = new EndpointView(name, mlops, trans, run);
      widget = createEndpointWidget(view);
      const tab = widget;
      view.looked.connect(() => void tabs.save(tab));
      void tabs.add(widget);
    }
    widget.content.look(page, deployment);
    if (!widget.isAttached) {
      app.shell.add(widget, 'main', { type: 'Endpoint' });
    }
    app.shell.activateById(widget.id);
  };

  kit.add(
    CommandIDs.openEndpoint,
    trans.__('Open Endpoint…'),
    async args => {
      const name = await choose(args, trans.__('Open which endpoint?'));
      if (name) {
        open(name, text(args, 'page'), text(args, 'deployment'));
      }
      return !!name;
    },
    {
      describedBy: described({
        page: trans.__('overview, try, logs, access, data or history'),
        deployment: trans.__('The deployment whose log is shown')
      }),
      icon: mlopsIcon
    }
  );

  kit.add(
    CommandIDs.setTraffic,
    trans.__('Move Traffic of an Endpoint…'),
    async args => {
      const name = await choose(args, trans.__('Move the traffic of which endpoint?'));
      const traffic = asTraffic(args.traffic);
      const mirror = asTraffic(args.mirror);
      const sticky = typeof args.sticky === 'string' ? args.sticky : null;
      if (!name || (!traffic && !mirror && sticky === null)) {
        if (name) {
          open(name, 'overview');
        }
        return false;
      }
      const endpoint = await read(name);
      if (!endpoint) {
        return false;
      }
      const change: ITrafficChange = {
        ...(traffic ? { traffic } : {}),
        ...(mirror ? { mirror_traffic: mirror } : {}),
        ...(sticky !== null ? { sticky_header: sticky } : {})
      };
      const body = trafficQuestion(endpoint, change, trans);
      const title = trans.__('Change the traffic of %1?', name);
      if (!(await kit.confirmed(true, title, body, trans.__('Apply'), false))) {
        return false;
      }
      const what = trans.__('The traffic of %1 was not changed', name);
      return act(name, what, () => serving.setTraffic(name, change));
    },
    {
      describedBy: described(
        { sticky: trans.__('The header by which requests stay with a deployment; empty: none') },
        {
          traffic: object(trans.__('Percent by deployment, together 100')),
          mirror: object(trans.__('Percent of the requests that one deployment gets copies of'))
        }
      ),
      isEnabled: kit.writable
    }
  );

  kit.add(
    CommandIDs.startCanary,
    trans.__('Start a Canary…'),
    async args => {
      const name = await choose(args, trans.__('Start a canary of which endpoint?'));
      const canary = args.canary as ICanarySpec | undefined;
      if (!name || !canary?.deployment) {
        if (name) {
          open(name, 'overview');
        }
        return false;
      }
      const title = trans.__('Start a canary of %1?', canary.deployment);
      const body = canaryQuestion(canary, trans);
      if (!(await kit.confirmed(true, title, body, trans.__('Start'), false))) {
        return false;
      }
      const what = trans.__('The canary was not started');
      return act(name, what, () => serving.startCanary(name, canary));
    },
    {
      describedBy: described(
        {},
        {
          canary: object(
            trans.__('deployment, percent, duration in seconds, min_requests and the limits')
          )
        }
      ),
      isEnabled: kit.writable
    }
  );

  kit.add(
    CommandIDs.promoteCanary,
    trans.__('Promote the Canary…'),
    async args => {
      const name = await choose(args, trans.__('Promote the canary of which endpoint?'));
      const endpoint = name ? await read(name) : null;
      const canary = endpoint?.status.canary;
      if (!endpoint || canary?.phase !== 'Running') {
        if (endpoint) {
          Notification.info(trans.__('No canary of %1 runs.', name), { autoClose: 4000 });
        }
        return false;
      }
      const traffic = { [canary.deployment]: 100 };
      const body = trafficQuestion(endpoint, { traffic }, trans);
      const title = trans.__('Promote %1 now?', canary.deployment);
      if (!(await kit.confirmed(true, title, body, trans.__('Promote'), false))) {
        return false;
      }
      return act(name, trans.__('The canary was not promoted'), () => serving.promote(name));
    },
    { describedBy: described(), isEnabled: kit.writable }
  );

  kit.add(
    CommandIDs.rollbackTraffic,
    trans.__('Roll Traffic Back…'),
    async args => {
      const name = await choose(args, trans.__('Roll the traffic of which endpoint back?'));
      const endpoint = name ? await read(name) : null;
      if (!endpoint) {
        return false;
      }
      const { canary, previous_traffic } = endpoint.status;
      const running = canary?.phase === 'Running';
      const traffic = (running && canary.previous) || previous_traffic || {};
      const title = running
        ? trans.__('Roll the canary of %1 back?', canary.deployment)
        : trans.__('Return to the traffic before?');
      const body = trafficQuestion(endpoint, { traffic }, trans);
      if (!(await kit.confirmed(true, title, body, trans.__('Roll back')))) {
        return false;
      }
      return act(name, trans.__('Not rolled back'), () => serving.rollback(name));
    },
    { describedBy: described(), isEnabled: kit.writable }
  );

  kit.add(
    CommandIDs.rotateKey,
    trans.__('Rotate a Key…'),
    async args => {
      const name = await choose(args, trans.__('Rotate a key of which endpoint?'));
      const key = text(args, 'key') || 'secondary';
      if (!name) {
        return false;
      }
      const tokens = key === 'tokens';
      const go = await kit.confirmed(
        true,
        tokens
          ? trans.__('End all tokens of %1?', name)
          : trans.__('Rotate the %1 key of %2?', key, name),
        tokens
          ? trans.__('Whoever calls with a token needs a new one.')
          : trans.__('Whoever calls with this key is refused from now on. The other key stays.'),
        tokens ? trans.__('End') : trans.__('Rotate')
      );
      if (!go) {
        return false;
      }
      let value = '';
      const done = await act(name, trans.__('Not rotated'), async () => {
        value = (await serving.rotateKey(name, key)).value;
      });
      if (done && value && !tokens) {
        await showSecret({
          title: trans.__('The new %1 key of %2', key, name),
          value,
          note: trans.__('It is shown only now: it is kept as a hash and cannot be read again.'),
          trans
        });
      }
      return done;
    },
    {
      describedBy: described({ key: trans.__('primary, secondary, or tokens for all tokens') }),
      isEnabled: kit.writable
    }
  );

  kit.add(
    CommandIDs.createToken,
    trans.__('Create a Token of an Endpoint'),
    async args => {
      const name = await choose(args, trans.__('A token of which endpoint?'));
      if (!name) {
        return false;
      }
      let value = '';
      let until = '';
      const done = await act(name, trans.__('No token was made'), async () => {
        const answer = await serving.token(name, Number(text(args, 'seconds')) || 3600);
        value = answer.token;
        until = new Date(answer.expires_at).toLocaleString();
      });
      if (done) {
        await showSecret({
          title: trans.__('A token of %1', name),
          value,
          note: trans.__('It is shown only now, and ends at %1.', until),
          trans
        });
      }
      return done;
    },
    {
      describedBy: described({ seconds: trans.__('For how long it is good; an hour by itself') }),
      isEnabled: kit.writable
    }
  );

  kit.add(
    CommandIDs.deleteDeployment,
    trans.__('Delete a Deployment…'),
    async args => {
      const name = text(args, 'name');
      const deployment = text(args, 'deployment');
      if (!name || !deployment) {
        return false;
      }
      const go = await kit.confirmed(
        model.settings.confirmDelete,
        trans.__('Delete deployment %1 of %2?', deployment, name),
        trans.__('Its instances stop. The model stays in the registry.'),
        trans.__('Delete')
      );
      return go
        ? act(name, trans.__('Not deleted'), () => serving.deleteDeployment(name, deployment))
        : false;
    },
    {
      describedBy: describe({
        name: trans.__('The endpoint'),
        deployment: trans.__('The deployment')
      }),
      isEnabled: kit.writable
    }
  );

  if (restorer) {
    void restorer.restore(tabs, {
      command: CommandIDs.openEndpoint,
      args: widget => ({ name: widget.content.name, page: widget.content.page }),
      name: widget => widget.content.name
    });
  }
}
