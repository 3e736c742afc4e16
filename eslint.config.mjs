import js from '@eslint/js';
import prettier from 'eslint-config-prettier';
import tseslint from 'typescript-eslint';

export default tseslint.config(
  { ignores: ['**/lib/**', 'jupyter_mlops/**', 'node_modules/**', 'labextension/style/*.js'] },
  js.configs.recommended,
  ...tseslint.configs.recommended,
  prettier,
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
          selector: "MemberExpression[object.name='PageConfig'][property.name='getBaseUrl']",
          message: 'Use serverSettings.baseUrl: the server may not be the one of the page.'
        },
        {
          selector: "JSXAttribute[name.name='dangerouslySetInnerHTML']",
          message: 'Names and logs come from users: render text only.'
        }
      ]
    }
  }
);
