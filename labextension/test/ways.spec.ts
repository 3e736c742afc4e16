import { nullTranslator } from '@jupyterlab/translation';
import { describe, expect, it } from 'vitest';

import type { ISurvey } from '../src/resources';
import { waysOf } from '../src/ways';
import { FakeApi } from './fakes';
// The same cases are those of `%mlops compute show` (tests/unit/test_route_words.py): it says what the panel says.
import cases from './ways.json';

const trans = nullTranslator.load('');

describe('ways of the data of jobs', () => {
  it.each(cases)('of $survey', ({ survey, ways }) => {
    const given = { ...new FakeApi().surveyed, ...survey } as ISurvey;
    expect(Object.fromEntries(waysOf(given, trans))).toEqual(ways);
  });
});
