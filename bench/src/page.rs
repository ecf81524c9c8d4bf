//! One self-contained page of results: a table with bars in SVG, no script, nothing loaded from elsewhere.
//!
//! Always: every text of a result is escaped. Never: fails on a result of another version; what is missing is left out.

use std::fmt::Write;

use serde_json::Value as Json;

use crate::figure::number;

const STYLE: &str = "body{font:14px system-ui;margin:2em;color:#222}table{border-collapse:collapse}\
td,th{padding:.25em .8em;text-align:left;border-bottom:1px solid #ddd}td.n{text-align:right}small{color:#777}";
/// How wide the greatest bar of a figure is, in pixels.
const WIDTH: f64 = 260.0;

/// The page of `results`.
#[must_use]
pub fn render(results: &[Json]) -> String {
    let mut page = format!("<!doctype html><meta charset=utf-8><title>ringpair-bench</title><style>{STYLE}</style>");
    page.push_str("<h1>ringpair-bench</h1>");
    for result in results {
        section(&mut page, result);
    }
    page
}

fn section(page: &mut String, result: &Json) {
    push(page, format_args!("<h2>{}</h2><table>", escape(text(&result["scenario"]))));
    page.push_str("<tr><th>figure<th>median<th>spread<th>unit<th>reference<th>ratio<th>figure over reference");
    for figure in result["figures"].as_array().into_iter().flatten() {
        row(page, figure);
    }
    push(page, format_args!("</table><p><small>{}</small>", escape(&result["host"].to_string())));
}

fn row(page: &mut String, figure: &Json) {
    let value = |key: &str| figure[key].as_f64().unwrap_or_default();
    let (median, reference) = (value("median"), &figure["reference"]);
    push(page, format_args!("<tr><td>{}<td class=n>{}", escape(text(&figure["name"])), number(median)));
    let runs = figure["runs"].as_u64().unwrap_or_default();
    push(page, format_args!("<td>{} – {} ({runs} runs)", number(value("min")), number(value("max"))));
    push(page, format_args!("<td>{}", escape(text(&figure["unit"]))));
    let Some(limit) = reference["median"].as_f64() else {
        page.push_str("<td><td><td>");
        return;
    };
    push(page, format_args!("<td>{}: {}", escape(text(&reference["name"])), number(limit)));
    push(page, format_args!("<td class=n>{:.3}<td>{}", value("ratio"), bars(median, limit)));
}

/// Two bars, the greater of them as wide as there is room.
fn bars(figure: f64, reference: f64) -> String {
    let greatest = figure.max(reference).max(f64::MIN_POSITIVE);
    let bar = |y: u32, value: f64, colour: &str| {
        let width = WIDTH * value.max(0.0) / greatest;
        format!("<rect y={y} height=9 width={width:.1} fill=\"{colour}\"/>")
    };
    format!("<svg width={WIDTH} height=22>{}{}</svg>", bar(1, figure, "#2b6cb0"), bar(12, reference, "#bbb"))
}

fn push(page: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = page.write_fmt(what);
}

fn text(value: &Json) -> &str {
    value.as_str().unwrap_or_default()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_becomes_a_page_whatever_it_holds() {
        let result = serde_json::json!({
            "scenario": "stream",
            "figures": [
                {"name": "a<b", "unit": "/s", "median": 50.0, "min": 1.0, "max": 99.0, "runs": 5,
                 "reference": {"name": "floor", "median": 100.0}, "ratio": 0.5},
                {"name": "alone", "unit": "s", "median": 1.0, "reference": null},
            ],
        });
        let page = render(&[result, Json::Null]);
        assert!(page.contains("a&lt;b") && !page.contains("a<b"), "{page}");
        assert!(page.contains("width=130.0") && page.contains("width=260.0"), "half as wide: {page}");
        assert_eq!(page.matches("<svg").count(), 1, "{page}");
        assert!(!page.contains("http"), "nothing is loaded from elsewhere: {page}");
    }
}
