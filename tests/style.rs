//! The rules of `docs/contributing.md` that neither the compiler, rustfmt nor clippy checks.
//!
//! This is the only style checker of the repository, and it knows no exceptions. Each rule is a
//! pure function from texts to violations, and a small text that breaks it stands beside it.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

#[path = "style/modules.rs"]
mod modules;
#[path = "style/tokens.rs"]
mod tokens;

use crate::modules::{circles, modules, shared_names};
use crate::tokens::is_word;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// How wide a line of code, comment or prose is at most, in characters.
const COLUMNS: usize = 100;
/// How many characters a cell of a table has at most.
const CELL: usize = 160;
/// How many lines a product file has at most, unit tests at its end left out.
const LINES: usize = 500;
/// Crates that are delivered.
const PRODUCT: [&str; 4] = ["pageserver/src", "pageserver/api/src", "proxy/src", "branchctl/src"];
/// Crates of several files for tests and benchmarks.
const SUPPORT: [&str; 5] =
    ["tests/support", "tests/simulation", "benches/compare", "benches/storage", "proxy/tests/it"];

/// A text of the repository, with its path from the root.
#[derive(Debug)]
struct Text {
    path: String,
    text: String,
}

impl Text {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned() }
    }

    fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Lines from 1 on, and whether each is code: of Markdown, what stands in a fenced block.
    fn lines(&self) -> Vec<(usize, &str, bool)> {
        let (mut lines, mut fenced) = (Vec::new(), self.is_rust());
        for (number, line) in (1..).zip(self.text.lines()) {
            let is_fence = !self.is_rust() && line.trim_start().starts_with("```");
            lines.push((number, line, fenced || is_fence));
            fenced ^= is_fence;
        }
        lines
    }

    /// Markdown's headings: line, level and text.
    fn headings(&self) -> Vec<(usize, usize, &str)> {
        let prose = self.lines().into_iter().filter(|(_, _, is_code)| !is_code);
        let level = |line: &str| line.chars().take_while(|sign| *sign == '#').count();
        prose
            .map(|(number, line, _)| (number, level(line), line))
            .filter(|(_, level, line)| (1..=6).contains(level) && line[*level..].starts_with(' '))
            .map(|(number, level, line)| (number, level, line[level..].trim()))
            .collect()
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust and Markdown of a directory.
fn texts(directory: &Path) -> Vec<Text> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(texts(&path));
        } else if name.ends_with(".rs") || name.ends_with(".md") {
            let from_root = path.strip_prefix(root()).unwrap().to_string_lossy();
            found.push(Text::new(&from_root, &fs::read_to_string(&path).unwrap()));
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

/// All of Rust, or all of Markdown, in the repository.
fn all(is_rust: bool) -> Vec<Text> {
    let texts: Vec<Text> = texts(root()).into_iter().filter(|t| t.is_rust() == is_rust).collect();
    assert!(texts.len() > 20, "only {} files were found", texts.len());
    texts
}

fn none(violations: &[String], remedy: &str) {
    let count = violations.len();
    assert!(violations.is_empty(), "{count} violations; {remedy}:\n{}", violations.join("\n"));
}

fn too_wide(text: &Text) -> Vec<String> {
    let mut violations = Vec::new();
    for (number, line, is_code) in text.lines() {
        let (columns, at) = (line.chars().count(), format!("{}:{number}", text.path));
        if !is_code && line.trim_start().starts_with('|') {
            let cells = line.replace("\\|", "/");
            let cells = cells.split('|').map(|cell| cell.trim().chars().count());
            let wide = cells.filter(|columns| *columns > CELL);
            violations.extend(wide.map(|columns| format!("{at}: a cell of {columns} characters")));
        } else if columns > COLUMNS && (is_code || !is_unbreakable(line)) {
            violations.push(format!("{at}: {columns} columns"));
        }
    }
    violations
}

/// Whether a line of prose is one address, which cannot go on in the next line.
fn is_unbreakable(line: &str) -> bool {
    let address = line.trim_start_matches(|sign: char| " -*>.0123456789".contains(sign));
    address.contains("://") && !address.trim_end().contains(' ')
}

/// Whether a file of a crate holds tests only.
fn is_tests(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.ends_with("_tests.rs") || path.contains("/tests/")
}

/// Product files that are too long. The unit tests at the end of a file do not count.
fn too_long(text: &Text) -> Option<String> {
    let lines: Vec<&str> = text.text.lines().map(str::trim).collect();
    let begins = |at: &usize| {
        let mut item = lines[*at..].iter().skip(1).skip_while(|line| line.starts_with("#["));
        lines[*at] == "#[cfg(test)]" && item.next() == Some(&"mod tests {")
    };
    let length = (0..lines.len()).rfind(begins).unwrap_or(lines.len());
    (length > LINES).then(|| format!("{}:{}: {length} lines", text.path, LINES + 1))
}

fn wrong_headings(text: &Text) -> Option<String> {
    let headings = text.headings();
    let titles: Vec<usize> = headings.iter().filter(|h| h.1 == 1).map(|h| h.0).collect();
    let line = titles.get(1).unwrap_or(&1);
    (titles.len() != 1).then(|| format!("{}:{line}: {} titles", text.path, titles.len()))
}

#[test]
fn lines_and_cells_are_narrow() {
    let (long, url) = ("word ".repeat(21), format!("- https://example.org/{}", "a".repeat(100)));
    let broken = ["a.rs", "a.md"].map(|path| too_wide(&Text::new(path, &format!("ok\n{long}"))));
    assert_eq!(broken, [["a.rs:2: 105 columns"], ["a.md:2: 105 columns"]]);
    let row = format!("| {long} | {} |", "ä".repeat(161));
    assert_eq!(too_wide(&Text::new("a.md", &row)), ["a.md:1: a cell of 161 characters"]);
    assert_eq!(too_wide(&Text::new("a.md", &format!("```\n{row}\n```"))).len(), 1);
    let narrow = ["ä".repeat(100), url.clone(), format!("| {} | a\\|b |", "a".repeat(160))];
    assert!(narrow.iter().all(|line| too_wide(&Text::new("a.md", line)).is_empty()));
    assert_eq!(too_wide(&Text::new("a.rs", &url)).len(), 1);
    let violations: Vec<String> =
        [all(true), all(false)].iter().flatten().flat_map(too_wide).collect();
    none(&violations, "break lines at 100 columns, say what a cell says in prose");
}

#[test]
fn product_files_are_short() {
    let (code, tests) = ("a\n".repeat(501), "#[cfg(test)]\n#[expect(b)]\nmod tests {\n}\n");
    assert_eq!(too_long(&Text::new("a.rs", &code)).unwrap(), "a.rs:501: 501 lines");
    assert_eq!(too_long(&Text::new("a.rs", &format!("{}{tests}", &code[2..]))), None);
    let declared = format!("#[cfg(test)]\nmod tests;\n{code}");
    assert!(too_long(&Text::new("a.rs", &declared)).is_some());
    let texts = all(true);
    let violations: Vec<String> = PRODUCT
        .iter()
        .flat_map(|root| modules(root, &texts))
        .filter_map(|m| too_long(m.text))
        .collect();
    none(&violations, "give a part of the file a file of its own");
}

#[test]
fn each_document_has_one_title() {
    let two = Text::new("a.md", "# A\n```sh\n# comment\n```\n## B\n# C\n");
    assert_eq!(wrong_headings(&two).unwrap(), "a.md:6: 2 titles");
    assert!(wrong_headings(&Text::new("a.md", "## B\n")).is_some());
    assert!(wrong_headings(&Text::new("a.md", "# A\n\n## B\n")).is_none());
    let violations: Vec<String> = all(false).iter().filter_map(wrong_headings).collect();
    none(&violations, "a document has one heading with one #");
}

#[test]
fn a_name_is_of_one_type_in_a_crate() {
    let strings =
        r##"const A: &str = "\" enum Two"; const B: &str = r#"" enum Two "#; struct One;"##;
    let comment =
        "struct Two<'a>(char, &'a str); // enum Two {}\nconst A: char = '\\''; /* enum Two */";
    let blocks = "impl A for [u8; 2] { type One = u8; }\nfn f() -> impl B { }\ntype One = u8;";
    let only_tests = "#[cfg(test)]\n#[a(b)]\nfn f<A, B>() {}\n#[cfg(test)]\nmod t { enum One {} }";
    let texts = [
        Text::new("c/src/a.rs", strings),
        Text::new("c/src/b.rs", comment),
        Text::new("c/src/d.rs", blocks),
        Text::new("c/src/e.rs", only_tests),
        Text::new("c/src/e_tests.rs", "struct One;"),
    ];
    assert_eq!(shared_names(&modules("c/src", &texts)), ["One: c/src/a.rs:1, c/src/d.rs:3"]);
    let texts = all(true);
    let crates = PRODUCT.iter().chain(&SUPPORT);
    let violations: Vec<String> =
        crates.flat_map(|root| shared_names(&modules(root, &texts))).collect();
    none(&violations, "give each type a name that says what only it is");
}

#[test]
fn imports_make_no_circle_of_files() {
    let texts = [
        Text::new("c/src/lib.rs", "mod a;\npub use a::A;\nuse std::fs;\n"),
        Text::new("c/src/a/mod.rs", "mod b;\npub use self::b::B;\nmod x { use super::super::y; }"),
        Text::new("c/src/a/b.rs", "use super::{\n    C as D,\n};\nuse crate::y::{self, z::*};"),
        Text::new("c/src/y.rs", "fn f() -> impl A + use<'_> {\n use crate::a::{b::{E}};\n}"),
        Text::new("c/src/y/z.rs", "#[cfg(test)]\nuse crate::a;\n// use crate::a;"),
    ];
    let found = circles(&modules("c/src", &texts[..3]));
    assert_eq!(found, Vec::<String>::new());
    let found = circles(&modules("c/src", &texts));
    let wanted = "3 files: c/src/a/mod.rs c/src/a/b.rs c/src/y.rs\n  c/src/a/b.rs:4 imports \
        c/src/y.rs\n  c/src/y.rs:2 imports c/src/a/b.rs";
    assert_eq!(found, [wanted]);
    let texts = [
        Text::new("c/src/q.rs", "pub(in crate::w) fn f() { crate::w::g() }"),
        Text::new("c/src/w.rs", "use crate::q;"),
    ];
    assert_eq!(circles(&modules("c/src", &texts)).len(), 1, "a path in the middle of code counts");
    let texts = all(true);
    let crates = PRODUCT.iter().chain(&SUPPORT);
    let violations: Vec<String> = crates.flat_map(|root| circles(&modules(root, &texts))).collect();
    none(&violations, "move what both files need into a third");
}

/// The targets of a document's links, each with its line.
fn links(text: &Text) -> Vec<(usize, &str)> {
    let prose = text.lines().into_iter().filter(|(_, _, is_code)| !is_code);
    let links = prose.flat_map(|(number, line, _)| {
        let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        targets.map(move |target| (number, target))
    });
    links.filter(|(_, target)| !target.contains("://") && !target.starts_with("mailto:")).collect()
}

/// A link's file from the root, and its anchor.
fn resolve(from: &str, target: &str) -> Option<(String, Option<String>)> {
    let (path, anchor) = match target.split_once('#') {
        Some((path, anchor)) => (path, Some(anchor.to_owned())),
        None => (target, None),
    };
    if path.is_empty() {
        return Some((from.to_owned(), anchor));
    }
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in path.split('/').filter(|part| !["", "."].contains(part)) {
        if part == ".." { parts.pop().map(drop)? } else { parts.push(part) }
    }
    Some((parts.join("/"), anchor))
}

/// The anchors of a document's headings, as GitHub makes them.
fn anchors(text: &Text) -> BTreeSet<String> {
    let (mut anchors, mut counts) = (BTreeSet::new(), BTreeMap::<String, usize>::new());
    for (_, _, heading) in text.headings() {
        // Of a link the text counts, and not the target.
        let pieces = heading.split("](").enumerate();
        let shown = pieces.map(|(at, piece)| match piece.split_once(')') {
            Some((_, rest)) if at > 0 => rest,
            _ => piece,
        });
        let shown = shown.collect::<String>().to_lowercase();
        let kept = shown.chars().filter(|sign| is_word(sign) || " -".contains(*sign));
        let slug = kept.collect::<String>().replace(' ', "-");
        let count = counts.entry(slug.clone()).or_default();
        anchors.insert(if *count == 0 { slug } else { format!("{slug}-{count}") });
        *count += 1;
    }
    anchors
}

fn broken_links(texts: &[Text], exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut broken = Vec::new();
    for text in texts {
        for (line, target) in links(text) {
            let leads = resolve(&text.path, target).is_some_and(|(path, anchor)| {
                let document = texts.iter().find(|text| text.path == path);
                let has = |anchor| document.is_some_and(|text| anchors(text).contains(&anchor));
                exists(&path) && anchor.is_none_or(has)
            });
            if !leads {
                broken.push(format!("{}:{line}: {target} leads nowhere", text.path));
            }
        }
    }
    broken
}

/// Documents of a directory that the page does not link.
fn unlinked(page: &str, directory: &str, texts: &[Text]) -> Vec<String> {
    let from = texts.iter().find(|text| text.path == page).unwrap();
    let resolved = links(from).into_iter().filter_map(|(_, target)| resolve(page, target));
    let linked: BTreeSet<String> = resolved.map(|(path, _)| path).collect();
    let inside = |path: &str| {
        let name = path.strip_prefix(directory).and_then(|path| path.strip_prefix('/'));
        name.is_some_and(|name| !name.contains('/')) && path != page
    };
    let paths = texts.iter().map(|text| &text.path);
    let missing = paths.filter(|path| inside(path) && !linked.contains(*path));
    missing.map(|path| format!("{path}:1: not linked from {page}")).collect()
}

#[test]
fn each_link_leads_somewhere() {
    let texts = [
        Text::new("README.md", "# A\n[a](docs/a.md#so-it-is-b-1) [b](#a) [c](https://c) [d](x.md)"),
        Text::new("docs/a.md", "# T\n## So it is: [`b`](#t)\n## So it is b\n[e](../../e) [f](#u)"),
    ];
    let broken = broken_links(&texts, |path| path.ends_with(".md") && path != "x.md");
    let wanted = [
        "README.md:2: x.md leads nowhere",
        "docs/a.md:4: ../../e leads nowhere",
        "docs/a.md:4: #u leads nowhere",
    ];
    assert_eq!(broken, wanted);
    let violations = broken_links(&all(false), |path| root().join(path).exists());
    none(&violations, "mend the path or the anchor");
}

#[test]
fn each_document_is_on_the_map() {
    let texts = ["README.md", "docs/a.md", "docs/b.md", "docs/lab/c.md"]
        .map(|path| Text::new(path, if path == "README.md" { "[a](docs/a.md#b)" } else { "" }));
    let missing = unlinked("README.md", "docs", &texts);
    assert_eq!(missing, ["docs/b.md:1: not linked from README.md"]);
    let texts = all(false);
    let mut violations = unlinked("README.md", "docs", &texts);
    violations.extend(unlinked("docs/lab/README.md", "docs/lab", &texts));
    none(&violations, "link it");
}
