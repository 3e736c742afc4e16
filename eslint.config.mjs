import js from '@eslint/js';
import jupyter from '@jupyter/eslint-plugin';
import prettier from 'eslint-config-prettier';
import tseslint from 'typescript-eslint';

const [recommended] = jupyter.configs.recommended;

export default tseslint.config(
  { ignores: ['**/lib/**', 'jupyter_mlops/**', 'node_modules/**', 'labextension/style/*.js'] },
  js.configs.recommended,
  ...tseslint.configs.recommended,
  prettier,
  {
    files: ['labextension/src/**/*.{ts,tsx}'],
    plugins: { jupyter },
    rules: {
      ...Object.fromEntries(Object.keys(recommended.rules).map(rule => [rule, 'error'])),
      // The panel and the commands are needed at once, charts are loaded with the first one.
      'jupyter/prefer-lazy-imports': 'off'
    }
  },
  {
    rules: {
      // Options beside their class, as JupyterLab does it.
      '@typescript-eslint/no-namespace': 'off',
      eqeqeq: ['error', 'smart'],
      curly: ['error', 'all'],
      'no-console': 'error',
      'no-alert': 'error',
      'no-restricted-syntax': [
        'error',
        {
          selector: "JSXAttribute[name.name='dangerouslySetInnerHTML']",
          message: 'Names and logs come from users: render text only.'
        }
      ]
    }
  }
);
