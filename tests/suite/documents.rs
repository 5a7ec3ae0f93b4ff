//! What the documentation refers to is there.

use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

/// Tests that a page names as `file::test`, in code spans.
fn named_tests(page: &str) -> Vec<(&str, &str)> {
    let spans = page.split('`').skip(1).step_by(2);
    let spans = spans.filter(|span| !span.contains('\n'));
    spans.filter_map(|span| span.split_once("::")).filter(|(file, _)| file.ends_with(".rs")).collect()
}

#[test]
fn every_test_that_the_page_of_edge_cases_names_exists() {
    let path = repository().join("docs/edge-cases.md");
    let page = std::fs::read_to_string(&path).expect("docs/edge-cases.md");
    let named = named_tests(&page);
    assert!(named.len() > 50, "{}", named.len());
    let missing = named.iter().filter(|(file, test)| {
        let source = std::fs::read_to_string(repository().join(file)).unwrap_or_default();
        !source.contains(&format!("fn {test}(")) && !source.contains(&format!("fn {test}<"))
    });
    assert_eq!(missing.collect::<Vec<_>>(), Vec::<&(&str, &str)>::new());
}

#[test]
fn named_tests_are_told_from_other_code() {
    let page = "a `file.rs::name` and `Type::function`, then\n```\nx.rs::not_this\n```\n";
    assert_eq!(named_tests(page), [("file.rs", "name")]);
}
