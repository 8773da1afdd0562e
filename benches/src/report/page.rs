//! A report as one HTML page: no script, no request, light and dark. Every text is escaped.

use std::fmt::Write as _;

use super::number::short;
use super::{Figure, Machine, Plot, Report, Run, Section, Table, plot};

/// The page's style. `--own` is what the report is about, `--other` what it is compared with; `--s0`… are series.
const STYLE: &str = "\
:root{color-scheme:light dark;--page:#fff;--card:#f7f8fa;--ink:#1c2330;--dim:#5c6675;--rule:#dde1e7;--own:#0b6bcb;--other:#9aa4b2;\
--s0:#0b6bcb;--s1:#c2410c;--s2:#0f8a5f;--s3:#a6398a;--s4:#a17400;--s5:#4b5563;--mark:#b45309}\
@media(prefers-color-scheme:dark){:root{--page:#12161d;--card:#1a2029;--ink:#e6eaf0;--dim:#98a3b3;--rule:#2c3542;--own:#58a6ff;--other:#66717f;\
--s0:#58a6ff;--s1:#ff9d5c;--s2:#4fd1a1;--s3:#e58ad0;--s4:#e6c04a;--s5:#aab4c0;--mark:#f0b35b}}\
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,\"Segoe UI\",Roboto,\"DejaVu Sans\",sans-serif}\
main{max-width:1000px;margin:0 auto;padding:36px 24px 64px}h1{font-size:27px;line-height:1.25;margin:0 0 6px}h2{font-size:19px;margin:0 0 4px}\
h3{font-size:15px;margin:22px 0 4px}p{margin:0 0 12px;max-width:76ch}.dim{color:var(--dim)}\
section{border-top:1px solid var(--rule);margin-top:34px;padding-top:22px}\
dl{display:grid;grid-template-columns:max-content 1fr;gap:4px 18px;margin:18px 0;padding:14px 18px;background:var(--card);border-radius:8px}\
dt{color:var(--dim)}dd{margin:0;min-width:0;overflow-wrap:anywhere}code{font:13px/1.45 ui-monospace,\"SF Mono\",Menlo,\"DejaVu Sans Mono\",monospace}\
ul{margin:8px 0;padding-left:20px}li{margin:2px 0;max-width:90ch}.quick{color:var(--mark);font-weight:600}\
.scroll{overflow-x:auto;margin:12px 0}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}\
th,td{text-align:right;padding:7px 10px;border-bottom:1px solid var(--rule);vertical-align:top}th:first-child,td:first-child{text-align:left;padding-left:0}\
thead th{color:var(--dim);font-weight:500;font-size:13px;vertical-align:bottom}tbody th{font-weight:500}td,tbody th{white-space:nowrap}th small{white-space:normal}tr.own th,tr.own td b{color:var(--own)}\
td b{font-weight:600}td small,th small{display:block;color:var(--dim);font-size:12px;font-weight:400}td .mark{color:var(--mark)}\
svg{display:block;width:100%;max-width:860px;height:auto;margin:10px 0 6px;font:12px system-ui,-apple-system,\"Segoe UI\",Roboto,\"DejaVu Sans\",sans-serif}\
svg text{fill:var(--ink)}svg .mark,svg .axis{fill:var(--dim)}svg .mark{font-size:11px}svg .label.own,svg .value{font-weight:600}svg .grid{stroke:var(--rule)}\
svg .bar.own{fill:var(--own)}svg .bar.other{fill:var(--other)}svg .whisker{stroke:var(--ink);fill:none;stroke-width:1.4}\
svg .sample{fill:var(--ink);stroke:var(--page);stroke-width:.8}svg .sample.hollow{fill:var(--page);stroke:var(--mark);stroke-width:1.6}\
svg .line,svg .spread{fill:none;stroke-width:2}svg .spread{stroke-width:1.3}svg .point{stroke:var(--page);stroke-width:1}\
svg .s0{stroke:var(--s0)}svg .s1{stroke:var(--s1)}svg .s2{stroke:var(--s2)}svg .s3{stroke:var(--s3)}svg .s4{stroke:var(--s4)}svg .s5{stroke:var(--s5)}\
svg .point{stroke:var(--page)}svg .point.s0{fill:var(--s0)}svg .point.s1{fill:var(--s1)}svg .point.s2{fill:var(--s2)}\
svg .point.s3{fill:var(--s3)}svg .point.s4{fill:var(--s4)}svg .point.s5{fill:var(--s5)}\
footer{margin-top:40px;color:var(--dim);font-size:13px}@media print{main{max-width:none;padding:0}section{break-inside:avoid}}";

/// The whole page.
pub(super) fn html(report: &Report) -> String {
    let title = escape(&report.title);
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <title>{title}</title><style>{STYLE}</style></head>\n<body><main><h1>{title}</h1>\n"
    );
    let _ = writeln!(html, "<p class=\"dim\">{}</p>", escape(&report.machine.summary()));
    if report.run.quick {
        html += "<p class=\"quick\">A quick run: it shows that everything works, not how fast it is.</p>\n";
    }
    write_facts(&mut html, &report.run, &report.machine);
    write_notes(&mut html, &report.notes);
    for section in &report.sections {
        write_section(&mut html, section);
    }
    html += "<footer>Medians; beneath them the smallest and the largest measurement. In bars, each dot is one measurement, hollow \
             where other load disturbed it; in tables, such medians are marked with stars. ≥ is a lower bound: the measuring side was \
             the limit.</footer>\n</main></body></html>\n";
    html
}

/// A text in which nothing is markup, inside elements and inside quoted attributes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            _ => escaped.push(character),
        }
    }
    escaped
}

fn write_facts(html: &mut String, run: &Run, machine: &Machine) {
    *html += "<dl>";
    let mut fact = |name: &str, value: String| {
        let _ = write!(html, "<dt>{}</dt><dd>{value}</dd>", escape(name));
    };
    fact("Started", format!("{}, took {:.0} s", escape(&run.started), run.seconds));
    fact("Command", format!("<code>{}</code>", escape(&run.command.join(" "))));
    let versions: Vec<String> = machine.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    fact("Versions", escape(&format!("{}, Linux {}", versions.join(", "), machine.kernel)));
    fact("CPU", escape(&format!("{}, {} usable", machine.cpu, machine.cores)));
    for (names, on, off) in alike(machine) {
        let off = if off.is_empty() { String::new() } else { format!("; off: {}", off.join(", ")) };
        fact("Offloads", escape(&format!("{names}: {}{off}", on.join(", "))));
    }
    *html += "</dl>\n";
}

/// Interfaces with the same offloads, together.
fn alike(machine: &Machine) -> Vec<(String, &[String], &[String])> {
    let mut groups: Vec<(String, &[String], &[String])> = Vec::new();
    for interface in &machine.interfaces {
        match groups.iter_mut().find(|group| group.1 == interface.on && group.2 == interface.off) {
            Some(group) => group.0 += &format!(", {}", interface.name),
            None => groups.push((interface.name.clone(), &interface.on, &interface.off)),
        }
    }
    groups
}

fn write_notes(html: &mut String, notes: &[String]) {
    if notes.is_empty() {
        return;
    }
    *html += "<ul class=\"dim\">";
    for note in notes {
        let _ = write!(html, "<li>{}</li>", escape(note));
    }
    *html += "</ul>\n";
}

fn write_section(html: &mut String, section: &Section) {
    let _ = write!(html, "<section><h2>{}</h2>", escape(&section.title));
    if !section.text.is_empty() {
        let _ = write!(html, "<p class=\"dim\">{}</p>", escape(&section.text));
    }
    for table in &section.tables {
        if table.bars {
            *html += &plot::bars(table);
        }
        write_table(html, table);
    }
    for plot in &section.plots {
        write_plot(html, plot);
    }
    write_notes(html, &section.notes);
    *html += "</section>\n";
}

fn write_plot(html: &mut String, plot: &Plot) {
    let _ = write!(html, "<h3>{}</h3>{}", escape(&plot.title), plot::lines(plot));
}

fn write_table(html: &mut String, table: &Table) {
    let _ = write!(html, "<div class=\"scroll\"><table><thead><tr><th>{}</th>", escape(&table.of));
    for column in &table.columns {
        let unit =
            if column.unit.is_empty() { String::new() } else { format!("<small>{}</small>", escape(&column.unit)) };
        let _ = write!(html, "<th>{}{unit}</th>", escape(&column.name));
    }
    *html += "</tr></thead><tbody>";
    for row in &table.rows {
        let class = if row.own { " class=\"own\"" } else { "" };
        let remark = row.remark.as_deref().map_or_else(String::new, |text| format!("<small>{}</small>", escape(text)));
        let _ = write!(html, "<tr{class}><th scope=\"row\">{}{remark}</th>", escape(&row.name));
        for cell in &row.cells {
            write_cell(html, cell.as_ref());
        }
        *html += "</tr>";
    }
    *html += "</tbody></table></div>";
}

fn write_cell(html: &mut String, cell: Option<&Figure>) {
    let Some(figure) = cell else {
        *html += "<td class=\"dim\">—</td>";
        return;
    };
    let bound = if figure.at_least() { "≥ " } else { "" };
    let stars = match figure.disturbed() {
        0 => String::new(),
        count => format!("<span class=\"mark\" title=\"{count} disturbed\">{}</span>", "*".repeat(count.min(3))),
    };
    let _ = write!(html, "<td><b>{bound}{}</b>{stars}", short(figure.median));
    if figure.is_spread() {
        let _ = write!(html, "<small>{}…{}</small>", short(figure.smallest), short(figure.largest));
    }
    *html += "</td>";
}

#[cfg(test)]
mod tests {
    use super::super::tests::example;
    use super::*;

    #[test]
    fn what_would_be_markup_is_escaped() {
        assert_eq!(escape("<b class=\"x\" id='y'>&amp;"), "&lt;b class=&quot;x&quot; id=&#39;y&#39;&gt;&amp;amp;");
    }

    #[test]
    fn no_text_of_a_report_becomes_markup_wherever_it_stands() {
        let page = example().to_html();
        // Every text of the example is hostile: title, machine, command, notes, headings, cells, axes, legend.
        assert!(!page.contains("<script") && !page.contains("alert(\"") && !page.contains("'x'"), "{page}");
        assert!(page.matches("&lt;script&gt;alert(&quot;1&quot;)").count() >= 16, "{page}");
    }

    #[test]
    fn a_page_needs_nothing_else() {
        let page = example().to_html();
        for outside in ["http://", "https://", "src=", "href=", "@import", "url("] {
            assert!(!page.contains(outside), "{outside}");
        }
        assert_eq!((page.matches("<svg").count(), page.matches("</svg>").count()), (2, 2));
        assert!(page.contains("prefers-color-scheme:dark"));
    }
}
