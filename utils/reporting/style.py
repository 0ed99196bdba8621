"""The page's style and its few lines of script. Both are part of the page, so it needs no other file."""

STYLE = """
:root{color-scheme:light dark;--page:#f6f5f1;--card:#fffefb;--ink:#1d1c1a;--muted:#625f58;--line:#dedbd2;--base:#a19d93;
--method:#1f6fb2;--best:#b4530a;--up:#1f78c1;--down:#e07b1a;--s0:#0b6cb3;--s1:#c1470b;--s2:#0a8a68;--s3:#a8487f;--s4:#8a6d00;
--s5:#3a8fc7;--s6:#5b4bb0;--s7:#4a4a4a}
@media (prefers-color-scheme:dark){:root{--page:#15161a;--card:#1e2025;--ink:#eceae4;--muted:#a9a69d;--line:#383a41;
--base:#7d7b75;--method:#58a9ea;--best:#ffb066;--up:#2f86d0;--down:#c7681a;--s0:#5fb2ee;--s1:#ff8f57;--s2:#3fd0a5;--s3:#ec97c6;
--s4:#e3c64a;--s5:#9ad3f7;--s6:#a99bf5;--s7:#cfcfcf}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1280px;margin:0 auto;padding:20px 16px 64px}
h1{font-size:clamp(1.6rem,1.1rem + 2.2vw,2.6rem);line-height:1.15;margin:.2em 0 .5em;letter-spacing:-.015em;text-wrap:balance}
h2{font-size:1.35rem;line-height:1.25;margin:0 0 .35em}
h3{font-size:1.02rem;margin:0 0 .3em}
p{margin:0 0 .8em;max-width:72ch}
.eyebrow{font-size:.8rem;letter-spacing:.09em;text-transform:uppercase;color:var(--muted);margin:0}
.lead{font-size:1.1rem;break-inside:avoid}
.leads{margin-bottom:14px}
summary{cursor:pointer;color:var(--method);margin-top:16px}
@media (max-width:560px){section{padding:16px 13px}section .card{border-width:1px 0 0;border-radius:0;padding:16px 0 0}}
@media (min-width:1000px){.leads{columns:2;column-gap:44px}.about{padding-top:34px}}
.note,.how{color:var(--muted);font-size:.93rem}
section,.card{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:20px;margin:20px 0;min-width:0}
section>.card{margin:16px 0 0;background:none}
nav{display:flex;flex-wrap:wrap;gap:6px 16px;font-size:.93rem;margin:4px 0 0}
a{color:var(--method)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:18px 0 4px}
.tile{border:1px solid var(--line);border-radius:12px;padding:12px 14px;background:var(--card)}
.tile b{display:block;font-size:1.75rem;line-height:1.2;font-variant-numeric:tabular-nums}
.tile span{color:var(--muted);font-size:.88rem}
.tile.best b{color:var(--best)}
.row{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:20px 28px;align-items:start}
figure{margin:0;min-width:0}
figcaption{font-size:.84rem;line-height:1.35;color:var(--muted);padding:5px 1px 0}
figcaption b{color:var(--ink);font-weight:600}
figure img{display:block;width:100%;height:auto;border-radius:5px;background:#000;image-rendering:auto}
img.map{image-rendering:pixelated;cursor:crosshair;touch-action:pan-y}
figure img+img{margin-top:3px}
.strip{display:grid;grid-template-columns:repeat(2,1fr);gap:12px}
@media (min-width:760px){.strip{grid-template-columns:repeat(4,1fr)}}
.wall+.wall{margin-top:14px}
.wall.few{grid-template-columns:repeat(auto-fill,minmax(min(29%,150px),1fr));margin:0}
details>.card{border:1px solid var(--line)}
@media (max-width:700px){.wide::before{content:"more to the right →";position:sticky;left:0;display:block;
font-size:.8rem;color:var(--muted);padding-bottom:2px}}
.about li{margin-bottom:.45em}
.wall{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(47%,176px),1fr));gap:14px 12px}
svg{display:block;width:100%;height:auto;max-width:460px}
svg text{font-family:inherit!important}
.scroll{overflow-x:auto;max-width:100%;-webkit-overflow-scrolling:touch}
.scroll:focus-visible{outline:2px solid var(--method);outline-offset:2px}
table{border-collapse:separate;border-spacing:0;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:6px 10px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;vertical-align:bottom}
thead th{color:var(--muted);font-size:.85rem}
tbody th,th:first-child{text-align:left;position:sticky;left:0;background:var(--card);z-index:1}
tbody th{font-weight:500;vertical-align:middle}
tr.best th,tr.best td{font-weight:700}
tr.best th::after{content:" \\2605";color:var(--best)}
td.words{text-align:left;white-space:normal;min-width:9em}
.gain{color:var(--up);font-weight:600}.loss{color:var(--down);font-weight:600}
@media (prefers-color-scheme:dark){.gain{color:#7cc0f5}.loss{color:#ffad66}}
small{color:var(--muted);font-size:.78rem}
.heat td{min-width:74px;line-height:1.25;padding:4px 8px}
.heat td small{color:inherit;opacity:.8;display:block}
.heat th{line-height:1.2}
.up{background:color-mix(in srgb,var(--up) calc(var(--g)*1%),var(--card))}
.down{background:color-mix(in srgb,var(--down) calc(var(--g)*1%),var(--card));background-image:repeating-linear-gradient(135deg,
color-mix(in srgb,var(--ink) 9%,transparent) 0 1px,transparent 1px 6px)}
.key{display:flex;flex-wrap:wrap;gap:6px 14px;font-size:.86rem;margin:0 0 12px;padding:0;list-style:none}
.key i{display:inline-block;width:1.05em;height:1.05em;border-radius:3px;vertical-align:-.15em;margin-right:5px;
border:1px solid color-mix(in srgb,var(--ink) 35%,transparent)}
.ramp{display:flex;align-items:center;gap:6px;font-size:.8rem;color:var(--muted);margin-top:2px}
.ramp i{flex:1;height:8px;border-radius:4px;min-width:24px}
.confusion{table-layout:fixed;width:100%;max-width:560px;font-size:.72rem}
.confusion td{padding:0;border:1px solid var(--card);height:clamp(12px,3.4vw,24px);background:color-mix(in srgb,var(--method)
calc(var(--g)*1%),color-mix(in srgb,var(--line) 45%,var(--card)))}
.confusion td.hit{background:color-mix(in srgb,var(--ink) calc(var(--g)*.75%),color-mix(in srgb,var(--line) 45%,var(--card)))}
.confusion th{border:0;padding:0 5px 0 0;font-weight:500;overflow:hidden;text-overflow:ellipsis}
.confusion thead th{writing-mode:vertical-rl;transform:rotate(180deg);padding:5px 0 0;height:62px;
text-align:left;position:static}
.confusion .corner{width:52px;writing-mode:initial;transform:none}
ul.plain{margin:.4em 0 0;padding-left:1.1em}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,320px),1fr));gap:10px 28px;margin:0}
dt{font-weight:650}dd{margin:0;color:var(--muted)}
#tip{position:fixed;z-index:9;pointer-events:none;background:var(--ink);color:var(--card);padding:2px 8px;border-radius:6px;
font-size:.85rem;display:none}
footer{color:var(--muted);font-size:.88rem}
"""

# Names the class of the pixel that the mouse or a finger points at. `COLOURS` stands before it: {"red,green,blue": name}.
SCRIPT = """
const tip=document.getElementById('tip'),read=new Map();
function pixels(img){if(!read.has(img)){const c=document.createElement('canvas');
c.width=img.naturalWidth;c.height=img.naturalHeight;
const g=c.getContext('2d',{willReadFrequently:true});g.drawImage(img,0,0);read.set(img,g)}return read.get(img)}
function show(e){const img=e.target;if(!(img instanceof HTMLImageElement)||!img.classList.contains('map')){
tip.style.display='none';return}
const r=img.getBoundingClientRect(),x=Math.floor((e.clientX-r.left)/r.width*img.naturalWidth),
y=Math.floor((e.clientY-r.top)/r.height*img.naturalHeight),
p=pixels(img).getImageData(Math.max(0,x),Math.max(0,y),1,1).data;
tip.textContent=COLOURS[p[0]+','+p[1]+','+p[2]]||'no label';tip.style.display='block';
tip.style.left=Math.min(e.clientX+14,innerWidth-tip.offsetWidth-4)+'px';tip.style.top=Math.max(4,e.clientY-34)+'px'}
addEventListener('pointermove',show);addEventListener('pointerdown',show);
addEventListener('scroll',()=>tip.style.display='none',{passive:true});
"""
