'use strict';
(() => {
  // Everything that comes from the model or the network is put into the page as text, never as markup.
  const find = id => document.getElementById(id);
  const number = /^-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?$/;
  let key = '';

  const xsrf = () => {
    const match = /(?:^|;\s*)_xsrf=([^;]*)/.exec(document.cookie);
    return match ? decodeURIComponent(match[1]) : '';
  };

  const readable = text => {
    try {
      const value = JSON.parse(text);
      // Numbers that JavaScript cannot hold must not be shown as others.
      return JSON.stringify(value) === text && text.length < 100000 ? pretty(value, '') : text;
    } catch {
      return text;
    }
  };
  const pretty = (value, indent) => {
    const line = JSON.stringify(value);
    if (line.length < 90 || value === null || typeof value !== 'object' || indent.length > 40) {
      return line;
    }
    const inner = indent + '  ';
    const parts = Array.isArray(value)
      ? value.map(v => inner + pretty(v, inner))
      : Object.entries(value).map(([k, v]) => inner + JSON.stringify(k) + ': ' + pretty(v, inner));
    const flat = Array.isArray(value) && value.every(v => v === null || typeof v !== 'object');
    const [open, close] = Array.isArray(value) ? '[]' : '{}';
    return flat ? line.split(',').join(', ') : open + '\n' + parts.join(',\n') + '\n' + indent + close;
  };

  // -- the page of an endpoint ---------------------------------------------------------------

  const start = () => {
    const about = JSON.parse(find('about').textContent);
    const address = new URL(about.invocations, document.baseURI).href;
    for (const node of document.querySelectorAll('[data-address]')) {
      node.textContent = address;
    }
    const form = find('try');
    if (form === null) {
      return;
    }
    const body = find('body');
    const example = find('example');
    const fields = find('fields');
    const mode = find('mode');
    const keyField = find('key');
    if (keyField !== null && key) {
      keyField.value = key;
    }

    const fromFields = () => {
      const parts = [];
      for (const input of fields.querySelectorAll('[data-column]')) {
        const { column, type, optional } = input.dataset;
        const given = input.value.trim();
        let text;
        if (type === 'string') {
          text = input.value === '' && optional ? null : JSON.stringify(input.value);
        } else if (given === '') {
          text = optional ? null : 'null';
        } else if (type === 'boolean') {
          text = given;
        } else if (type === 'number') {
          text = number.test(given) ? given : JSON.stringify(given);
        } else {
          text = JSON.stringify(given);
        }
        if (text !== null) {
          parts.push(JSON.stringify(column) + ': ' + text);
        }
      }
      return '{"dataframe_records": [{\n  ' + parts.join(',\n  ') + '\n}]}';
    };
    const show = () => {
      const byField = mode !== null && mode.value === 'fields';
      if (fields !== null) {
        fields.hidden = !byField;
      }
      find('editor').hidden = byField;
    };
    if (mode !== null) {
      mode.addEventListener('change', () => {
        if (mode.value === 'json') {
          body.value = fromFields();
        }
        show();
      });
    }
    if (example !== null) {
      example.addEventListener('change', () => {
        body.value = about.examples[Number(example.value)].body;
      });
    }
    show();

    form.addEventListener('submit', async event => {
      event.preventDefault();
      const button = find('send');
      const status = find('status');
      const answer = find('answer');
      const chosen = find('deployment');
      const target = new URL(about.target, document.baseURI);
      const csv = example !== null && about.examples[Number(example.value)].type === 'text/csv' && !find('editor').hidden;
      const headers = { 'Content-Type': csv ? 'text/csv' : 'application/json' };
      if (about.mode === 'owner') {
        headers['X-XSRFToken'] = xsrf();
      } else {
        key = keyField.value.trim();
        headers.Authorization = 'Bearer ' + key;
      }
      if (chosen !== null && chosen.value) {
        if (about.mode === 'owner') {
          target.searchParams.set('deployment', chosen.value);
        } else {
          headers['azureml-model-deployment'] = chosen.value;
        }
      }
      button.disabled = true;
      status.className = 'about';
      status.textContent = 'Waiting for the answer …';
      answer.hidden = true;
      const begun = performance.now();
      try {
        const response = await fetch(target, {
          method: 'POST',
          headers,
          body: mode !== null && mode.value === 'fields' ? fromFields() : body.value,
          credentials: about.mode === 'owner' ? 'same-origin' : 'omit',
          cache: 'no-store',
          redirect: 'error'
        });
        const text = await response.text();
        const took = Math.round(performance.now() - begun);
        const by = response.headers.get('X-Deployment');
        const request = response.headers.get('X-Request-Id');
        const parts = [response.status + (response.ok ? ' OK' : ''), took + ' ms'];
        if (by) {
          parts.push('deployment ' + by);
        }
        if (request) {
          parts.push('request ' + request);
        }
        status.className = response.ok ? 'good' : 'bad';
        status.textContent = parts.join(' · ');
        answer.textContent = readable(text) || '(empty)';
        answer.hidden = false;
      } catch (error) {
        status.className = 'bad';
        status.textContent = 'No answer: ' + (error instanceof Error ? error.message : String(error));
      } finally {
        button.disabled = false;
      }
    });

    find('download').addEventListener('click', () => {
      const link = document.createElement('a');
      link.href = URL.createObjectURL(new Blob([find('document').textContent], { type: 'application/json' }));
      link.download = 'openapi.json';
      link.click();
      URL.revokeObjectURL(link.href);
    });
  };

  // -- the door: without a key nothing is told, so the page asks for it and fetches itself again ------------

  const knock = () => {
    find('door').addEventListener('submit', async event => {
      event.preventDefault();
      const status = find('status');
      const button = find('send');
      key = find('key').value.trim();
      button.disabled = true;
      status.className = 'about';
      status.textContent = 'Asking …';
      try {
        const response = await fetch(document.baseURI, {
          headers: { Accept: 'text/html', Authorization: 'Bearer ' + key },
          credentials: 'omit',
          cache: 'no-store',
          redirect: 'error'
        });
        const text = await response.text();
        if (!response.ok) {
          status.className = 'bad';
          status.textContent =
            response.status === 401 ? 'This key opens nothing here.' : 'The endpoint answered ' + response.status + '.';
          return;
        }
        const page = new DOMParser().parseFromString(text, 'text/html');
        document.title = page.title;
        document.body.replaceChildren(...page.body.childNodes);
        start();
        document.querySelector('h1').focus();
      } catch (error) {
        status.className = 'bad';
        status.textContent = 'No answer: ' + (error instanceof Error ? error.message : String(error));
      } finally {
        button.disabled = false;
      }
    });
  };

  if (find('door') !== null) {
    knock();
  } else {
    start();
  }
})();
