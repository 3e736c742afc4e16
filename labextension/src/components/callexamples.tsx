/** The call that the form makes, for programs. The key is a variable: none is ever in code. */
import { TranslationBundle } from '@jupyterlab/translation';
import React, { useState } from 'react';

import type { ISignature } from '../api';
import { curlCall, exampleBody, keyVariable, magicCall, pythonCall } from '../codegen';
import type { LiveEndpoint } from '../liveendpoint';
import { CopyButton } from './common';

const LANGUAGES = ['python', 'curl', 'magic'] as const;
type Language = (typeof LANGUAGES)[number];

export function CallExamples(props: {
  live: LiveEndpoint;
  signature: ISignature;
  /** The request as JSON; null: one that is made up. */
  body: string | null;
  trans: TranslationBundle;
}): JSX.Element {
  const { live, signature, trans } = props;
  const [language, setLanguage] = useState<Language>('python');
  const labels: Record<Language, string> = {
    python: 'Python',
    curl: 'curl',
    magic: trans.__('Notebook')
  };
  const url = live.endpoint?.status.scoring_uri || live.api.endpointUrl(live.name);
  const body: unknown = props.body === null ? exampleBody(signature) : JSON.parse(props.body);
  const code = {
    python: () => pythonCall(live.name, url, signature, body),
    curl: () => curlCall(live.name, url, signature, body),
    magic: () => magicCall(live.name)
  }[language]();
  return (
    <section className="jp-Mlops-code" aria-label={trans.__('The same call in code')}>
      <div className="jp-Mlops-codeHead">
        <div
          className="jp-Mlops-tabs"
          role="tablist"
          aria-label={trans.__('The same call in code')}
        >
          {LANGUAGES.map(one => (
            <button
              key={one}
              type="button"
              role="tab"
              className="jp-Mlops-tab"
              aria-selected={one === language}
              data-testid={`mlops-code-${one}`}
              onClick={() => setLanguage(one)}
            >
              {labels[one]}
            </button>
          ))}
        </div>
        <span className="jp-Mlops-spring" />
        <a
          className="jp-Mlops-link"
          href={live.api.serving.url(live.name, 'docs')}
          target="_blank"
          rel="noreferrer"
        >
          {trans.__('OpenAPI page')}
        </a>
        <CopyButton text={code} label={trans.__('Copy the code')} trans={trans} />
      </div>
      <pre data-testid="mlops-code">{code}</pre>
      {language !== 'magic' && (
        <div className="jp-Mlops-muted jp-Mlops-small">
          {trans.__('The key is read from the environment variable %1.', keyVariable(live.name))}
        </div>
      )}
    </section>
  );
}
