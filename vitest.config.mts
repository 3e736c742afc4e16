import { readFileSync } from 'node:fs';
import { defineConfig } from 'vitest/config';

export default defineConfig({
  plugins: [
    {
      // JupyterLab imports *.svg as strings.
      name: 'svg-as-string',
      enforce: 'pre',
      load(id) {
        if (id.endsWith('.svg')) {
          return `export default ${JSON.stringify(readFileSync(id, 'utf8'))};`;
        }
        return null;
      }
    }
  ],
  test: {
    environment: 'jsdom',
    setupFiles: ['labextension/test/setup.ts'],
    include: ['labextension/test/**/*.spec.{ts,tsx}'],
    css: false,
    // Test files share what they import: loading JupyterLab anew for each doubles the time.
    isolate: false,
    server: { deps: { inline: [/@jupyterlab\//, /@lumino\//, /@jupyter\//, /@microsoft\//] } }
  }
});
