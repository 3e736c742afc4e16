/** The version of this package; a test holds it equal to package.json's. */
export const VERSION = '0.1.0';

/**
 * Whether a server half of version `other` works with this front end.
 *
 * While the major version is 0 a minor release may change anything.
 */
export function compatible(other: string, own: string = VERSION): boolean {
  const [a, b] = [own, other].map(text => text.split('.'));
  return a[0] === b[0] && (a[0] !== '0' || a[1] === b[1]);
}
