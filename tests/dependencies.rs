//! What is built on keeps to the rules of `docs/dependencies.md`.

#![expect(clippy::unwrap_used, reason = "the lint knows test functions, but not their helpers")]

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Licences that ask for no more than to be named.
const LICENCES: [&str; 11] = [
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "MIT",
    "NCSA",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// The workspaces: what is built as the product and its tests, and the fuzz targets.
const WORKSPACES: [&str; 2] = ["", "fuzz"];
/// Where unsafe code may be.
const UNSAFE: [&str; 4] = [
    "pageserver/src/sys.rs",
    "pageserver/src/sys/child.rs",
    "pageserver/src/sys/uring.rs",
    "tests/support/mapped.rs",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A package as `Cargo.lock` has it.
#[derive(Debug)]
struct Locked {
    name: String,
    version: String,
    source: Option<String>,
    checksum: Option<String>,
}

fn locked(workspace: &str) -> Vec<Locked> {
    let lock = fs::read_to_string(root().join(workspace).join("Cargo.lock")).unwrap();
    let package = |text: &str| {
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} = ")));
            line.map(|value| value.trim_matches('"').to_owned())
        };
        let (source, checksum) = (field("source"), field("checksum"));
        Locked {
            name: field("name").unwrap(),
            version: field("version").unwrap(),
            source,
            checksum,
        }
    };
    let packages: Vec<Locked> = lock.split("[[package]]\n").skip(1).map(package).collect();
    assert!(packages.len() > 10, "Cargo.lock of \"{workspace}\" was not understood");
    packages
}

/// What cargo says of a workspace, as far as it is built on this system.
fn metadata(workspace: &str) -> Value {
    let version = Command::new("rustc").arg("-vV").output().unwrap().stdout;
    let version = String::from_utf8(version).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let mut command = Command::new(env!("CARGO"));
    command.args(["metadata", "--locked", "--format-version", "1", "--filter-platform", host]);
    let output = command
        .arg("--manifest-path")
        .arg(root().join(workspace).join("Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().unwrap().iter()
}

/// The names in a table of the document.
fn documented(heading: &str) -> BTreeSet<String> {
    let document = fs::read_to_string(root().join("docs/dependencies.md")).unwrap();
    let (_, section) = document.split_once(&format!("## {heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let first = section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.split('|').nth(1).unwrap());
    first
        .flat_map(|cell| cell.split(','))
        .map(|name| name.trim().trim_matches('`').to_owned())
        .collect()
}

#[test]
fn everything_comes_from_one_registry_with_a_checksum() {
    let mut sources = BTreeSet::new();
    for workspace in WORKSPACES {
        for package in locked(workspace) {
            let Some(source) = &package.source else {
                let ours = ["api", "branchctl", "coppice", "coppice-fuzz", "pageserver", "proxy"];
                assert!(ours.contains(&package.name.as_str()), "{package:?} has no source");
                continue;
            };
            assert!(source.starts_with("registry+"), "{package:?}");
            let checks =
                |sum: &String| sum.len() == 64 && sum.bytes().all(|byte| byte.is_ascii_hexdigit());
            assert!(package.checksum.as_ref().is_some_and(checks), "{package:?}");
            sources.insert(source.clone());
        }
    }
    assert_eq!(sources.len(), 1, "{sources:?}");
}

/// Whether what an expression asks for is allowed: alternatives (`OR`, or `/` in old ones) of parts
/// that all count (`AND`).
fn allowed(licence: &str) -> bool {
    let licence = licence.replace('/', " OR ");
    // An inner part in parentheses becomes one that is allowed or not.
    if let Some(close) = licence.find(')') {
        let open = licence[..close].rfind('(').unwrap();
        let inner = if allowed(&licence[open + 1..close]) { "MIT" } else { "refused" };
        return allowed(&format!("{}{inner}{}", &licence[..open], &licence[close + 1..]));
    }
    let all = |part: &str| part.split(" AND ").all(|name| LICENCES.contains(&name.trim()));
    licence.split(" OR ").any(all)
}

#[test]
fn each_licence_is_one_of_those_allowed() {
    let combined = "(MIT OR Apache-2.0) AND Unicode-3.0";
    assert!(allowed(combined) && allowed("GPL-3.0/MIT") && allowed("MIT AND (GPL-2.0 OR ISC)"));
    assert!(
        !allowed("GPL-3.0")
            && !allowed("MIT AND GPL-3.0")
            && !allowed("(MIT AND GPL-2.0) OR AGPL-3.0")
    );
    for workspace in WORKSPACES {
        let metadata = metadata(workspace);
        for package in packages(&metadata) {
            let licence = package["license"].as_str().unwrap_or("none");
            assert!(
                allowed(licence),
                "{} {} is under {licence}",
                package["name"],
                package["version"]
            );
        }
    }
}

/// Files of the registry's index that cargo keeps, by the name of the crate.
fn index() -> BTreeMap<String, PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
    let (mut files, mut directories) =
        (BTreeMap::new(), Vec::from_iter(home.map(|home| home.join("registry/index"))));
    while let Some(directory) = directories.pop() {
        for path in
            fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
        {
            match path.file_name().and_then(|name| name.to_str()) {
                _ if path.is_dir() => directories.push(path),
                Some(name) => drop(files.insert(name.to_owned(), path)),
                None => {}
            }
        }
    }
    files
}

#[test]
fn no_version_was_taken_back() {
    let (files, mut known) = (index(), 0);
    let packages: Vec<Locked> =
        WORKSPACES.into_iter().flat_map(locked).filter(|p| p.source.is_some()).collect();
    for package in &packages {
        let Some(bytes) = files.get(&package.name).and_then(|path| fs::read(path).ok()) else {
            continue;
        };
        // Behind its own header the file has a JSON object for each version, between zeros.
        let of_version = |part: &[u8]| {
            let entry: Value = serde_json::from_slice(part).ok()?;
            (entry["vers"] == *package.version).then(|| entry["yanked"].as_bool())?
        };
        let yanked = bytes.split(|byte| *byte == 0).find_map(of_version);
        assert_ne!(yanked, Some(true), "{} {} was taken back", package.name, package.version);
        known += usize::from(yanked.is_some());
    }
    println!("the index on this machine knows {known} of {} versions", packages.len());
}

#[test]
fn each_crate_is_there_in_one_version() {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in locked("") {
        versions.entry(package.name).or_default().insert(package.version);
    }
    let several: BTreeSet<String> = versions
        .into_iter()
        .filter(|(_, versions)| versions.len() > 1)
        .map(|(name, _)| name)
        .collect();
    assert_eq!(several, documented("Crates in two versions"), "left: found, right: documented");
}

/// All Rust files of a directory, with their paths from the root.
fn sources(directory: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            found.extend(sources(&path));
        } else if name.ends_with(".rs") {
            let from_root = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            found.push((from_root, fs::read_to_string(&path).unwrap()));
        }
    }
    found
}

/// What of a file is in the product: nothing of tests, and not the tests at a file's end.
fn shipped<'t>(path: &str, text: &'t str) -> Option<&'t str> {
    let is_test = path.contains("tests/") || path.ends_with("tests.rs");
    let text = text.split("#[cfg(test)]\nmod tests {").next();
    text.filter(|_| path.contains("src/") && !is_test)
}

#[test]
fn direct_dependencies_are_known_and_used() {
    let mut direct = BTreeSet::new();
    for workspace in WORKSPACES {
        let metadata = metadata(workspace);
        let ours: Vec<&Value> =
            packages(&metadata).filter(|package| package["source"].is_null()).collect();
        let directory = |package: &Value| {
            let manifest = PathBuf::from(package["manifest_path"].as_str().unwrap());
            manifest.parent().unwrap().to_owned()
        };
        for package in &ours {
            let home = directory(package);
            // What lies in the directory of another package is not this one's.
            let nested: Vec<PathBuf> = ours.iter().map(|other| directory(other)).collect();
            let is_nested = |path: &str| {
                let path = root().join(path);
                nested.iter().any(|other| {
                    *other != home && other.starts_with(&home) && path.starts_with(other)
                })
            };
            let files = sources(&home).into_iter().filter(|(path, _)| !is_nested(path));
            let files: Vec<(String, String)> = files.collect();
            let all: String = files.iter().map(|(_, text)| text.as_str()).collect();
            // The package of the tests, and that of the fuzz targets, are no product.
            let is_product = home.join("src").is_dir();
            let product: String =
                files.iter().filter_map(|(path, text)| shipped(path, text)).collect();
            let dependencies = package["dependencies"].as_array().unwrap().iter();
            for dependency in dependencies.filter(|dependency| !dependency["source"].is_null()) {
                let name = dependency["name"].as_str().unwrap();
                let path = format!("{}::", name.replace('-', "_"));
                let ships = is_product && dependency["kind"].is_null();
                let text = if ships { &product } else { &all };
                assert!(text.contains(&path), "{} does not use {name}", package["name"]);
                direct.insert(name.to_owned());
            }
        }
    }
    assert_eq!(direct, documented("Direct dependencies"), "left: found, right: documented");
}

#[test]
fn unsafe_code_is_where_it_is_looked_at() {
    let denied = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(denied.contains("\nunsafe_code = \"deny\"\n"));
    let fuzz = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
    assert!(fuzz.contains("\nunsafe_code = \"deny\"\n"));
    for package in packages(&metadata("")).filter(|package| package["source"].is_null()) {
        let manifest = fs::read_to_string(package["manifest_path"].as_str().unwrap()).unwrap();
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{} has lints of its own",
            package["name"]
        );
    }
    let (word, lint) = (concat!("un", "safe "), concat!("unsafe", "_code"));
    let found: BTreeSet<String> = sources(root())
        .into_iter()
        .filter(|(path, _)| path != "tests/dependencies.rs")
        .filter(|(_, text)| {
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            code.into_iter().any(|line| line.contains(word) || line.contains(lint))
        })
        .map(|(path, _)| path)
        .collect();
    assert_eq!(found, BTreeSet::from(UNSAFE.map(str::to_owned)));
}
