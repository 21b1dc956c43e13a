//! Pages that list what the code holds are compared with the code. `UPDATE_DOCS=1 cargo test -p tests --test it docs` writes them anew.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

/// Replaces what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->` in a page, or checks that it stands there already.
fn holds(page: &str, name: &str, expected: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(page);
    let text = fs::read_to_string(&path).unwrap();
    let (begin, end) = (
        format!("<!-- {name}: begin -->\n"),
        format!("<!-- {name}: end -->"),
    );
    let from = text
        .find(&begin)
        .unwrap_or_else(|| panic!("{page} has no mark {begin}"))
        + begin.len();
    let to = text
        .find(&end)
        .unwrap_or_else(|| panic!("{page} has no mark {end}"));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, format!("{}{expected}{}", &text[..from], &text[to..])).unwrap();
    } else {
        assert_eq!(
            &text[from..to],
            expected,
            "{page} is behind the code: run UPDATE_DOCS=1 cargo test -p tests --test it docs"
        );
    }
}

#[test]
fn the_readme_names_every_request_that_answers_3() {
    let mut by_part: Vec<(String, Vec<String>)> = Vec::new();
    for (code, text) in broker::processor::NOT_SERVED {
        let (name, part) = text.split_once(": ").unwrap_or((text, "others"));
        let entry = format!("{name} {code}");
        match by_part.iter_mut().find(|(p, _)| p == part) {
            Some((_, entries)) => entries.push(entry),
            None => by_part.push((part.to_owned(), vec![entry])),
        }
    }
    let mut list = String::from("| Part | Requests that are answered with code 3 |\n|---|---|\n");
    for (part, entries) in by_part {
        let _ = writeln!(list, "| {part} | {} |", entries.join(", "));
    }
    holds("README.md", "answered with 3", &list);
}
