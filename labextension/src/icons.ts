/** Our icon: the loop from training to serving and back. Colours follow the theme through jp-icon classes. */
import { LabIcon } from '@jupyterlab/ui-components';

export const mlopsIcon = new LabIcon({
  name: 'jupyter-mlops:loop',
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24" fill="none">
  <g class="jp-icon3 jp-icon-selectable" stroke="#616161" stroke-width="2" stroke-linecap="round">
    <path class="jp-icon3 jp-icon-selectable" stroke="#616161" fill-opacity="0" d="M14.2 9.6C15.3 8.3 16.3 7.3 18 7.3a4.7 4.7 0 0 1 0 9.4c-4.4 0-7.6-9.4-12-9.4a4.7 4.7 0 0 0 0 9.4c1.7 0 2.7-1 3.8-2.3"/>
  </g>
  <circle class="jp-icon3 jp-icon-selectable" fill="#616161" cx="18" cy="12" r="1.8"/>
  <circle class="jp-icon3 jp-icon-selectable" fill="#616161" cx="6" cy="12" r="1.8"/>
</svg>`
});

/** Curves over an axis. */
export const chartIcon = new LabIcon({
  name: 'jupyter-mlops:chart',
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24" fill="none">
  <g class="jp-icon3 jp-icon-selectable" stroke="#616161" stroke-width="2" stroke-linecap="round" stroke-linejoin="round">
    <path class="jp-icon3 jp-icon-selectable" stroke="#616161" fill-opacity="0" d="M4 4v16h16"/>
    <path class="jp-icon3 jp-icon-selectable" stroke="#616161" fill-opacity="0" d="M8 8c1.5 6 4 8 11 8"/>
  </g>
</svg>`
});
