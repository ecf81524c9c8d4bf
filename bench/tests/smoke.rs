//! The executable's own surface: a quick floor gives figures in the form that others' scripts read; what is not there
//! is named. No member is started.
#![expect(clippy::unwrap_used, reason = "test code: what fails to unwrap is a failed test")]

use std::process::Command;

fn bench(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_ringpair-bench")).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_quick_floor_is_one_json_document_and_becomes_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let (result, page) = (dir.path().join("floor.json"), dir.path().join("page.html"));
    let (code, out, err) = bench(&["floor", "--quick", "--json", "--out", result.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{err}");
    let document: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(document["scenario"], "floor");
    assert!(document["host"]["cpus"].is_u64() && document["host"]["kernel"].is_string(), "{document:#}");
    let figures = document["figures"].as_array().unwrap();
    assert_eq!(figures.len(), 14);
    for figure in figures {
        assert!(figure["name"].is_string() && figure["unit"].is_string(), "{figure}");
        let value = |key: &str| figure[key].as_f64().unwrap();
        assert!(0.0 < value("min") && value("min") <= value("median") && value("median") <= value("max"), "{figure}");
        assert_eq!(figure["runs"], 2, "{figure}");
        let ratio = figure["reference"]["median"].as_f64().map(|reference| value("median") / reference);
        let difference = figure["ratio"].as_f64().zip(ratio).map(|(shown, ratio)| (shown / ratio - 1.0).abs());
        assert_eq!(figure["ratio"].is_null(), ratio.is_none(), "{figure}");
        assert!(difference.is_none_or(|difference| difference < 1e-9), "{figure}");
    }
    let written: serde_json::Value = serde_json::from_slice(&std::fs::read(&result).unwrap()).unwrap();
    assert_eq!(written, document);
    let (code, _, err) = bench(&["report", result.to_str().unwrap(), "--out", page.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{err}");
    assert!(std::fs::read_to_string(page).unwrap().contains("fdatasync_two_writers_p50_us"));
}

#[test]
fn what_is_not_there_is_named_with_what_is() {
    for arguments in [&["email"][..], &["report"], &["floor", "file"], &["floor", "--runs", "0"], &[]] {
        assert_eq!(bench(arguments).0, Some(2), "{arguments:?}");
    }
    let (_, _, err) = bench(&["email"]);
    assert!(["bulk", "email", "floor", "idle", "stream", "tree"].iter().all(|name| err.contains(name)), "{err}");
}
