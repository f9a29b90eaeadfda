//! The files of a crate as modules: names that they share, and circles of their imports.
//!
//! An import counts for the file of the deepest module that its path names. What a module shows of
//! its own parts (`pub use`) is no import, and whoever imports it from there imports the module.

use crate::tokens::{self, Token};
use crate::{Text, is_tests};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A file of a crate as a module of it.
#[derive(Debug)]
pub(crate) struct Module<'a> {
    pub(crate) text: &'a Text,
    pub(crate) name: Vec<String>,
    pub(crate) tokens: Vec<Token>,
}

/// The files of a crate that are not tests only.
pub(crate) fn modules<'a>(root: &str, texts: &'a [Text]) -> Vec<Module<'a>> {
    let inside = |text: &&Text| {
        let path = text.path.strip_prefix(root);
        path.is_some_and(|path| path.starts_with('/') && !is_tests(path))
    };
    let files = || texts.iter().filter(inside);
    // Beside a library `main.rs` is a crate of its own, which nothing can import.
    let has_library = files().any(|text| text.path == format!("{root}/lib.rs"));
    let module = |text: &'a Text| {
        let path = text.path[root.len() + 1..].trim_end_matches(".rs");
        let mut name: Vec<String> = path.split('/').map(str::to_owned).collect();
        let is_root = path == "lib" || (path == "main" && !has_library);
        name.truncate(name.len() - usize::from(is_root || name.ends_with(&["mod".to_owned()])));
        Module { text, name, tokens: tokens::without_tests(&tokens::tokens(&text.text)) }
    };
    files().map(module).collect()
}

/// The names that a crate gives to several types, each with the places.
pub(crate) fn shared_names(modules: &[Module]) -> Vec<String> {
    let mut places: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for module in modules {
        for (name, line) in tokens::definitions(&module.tokens) {
            places.entry(name).or_default().push(format!("{}:{line}", module.text.path));
        }
    }
    let shared = places.into_iter().filter(|(_, places)| places.len() > 1);
    shared.map(|(name, places)| format!("{name}: {}", places.join(", "))).collect()
}

/// What a module imports from other files of its crate: which file, and in which line.
fn imports(module: &Module, files: &BTreeMap<&[String], usize>) -> BTreeMap<usize, usize> {
    let mut imports = BTreeMap::new();
    let around = tokens::surroundings(&module.tokens);
    for (at, _) in module.tokens.iter().enumerate().filter(|(_, token)| token.text == "use") {
        let tree = module.tokens[at + 1..].split(|token| token.text == ";").next().unwrap();
        // Not `impl Trait + use<'a>`.
        if tree.first().is_none_or(|token| token.text == "<") {
            continue;
        }
        let is_public = at > 0 && [")", "pub"].contains(&module.tokens[at - 1].text.as_str());
        for (path, line) in tokens::leaves(tree) {
            let Some(full) = absolute(&path, &module.name, around[at].1, files) else { continue };
            let deepest = (0..=full.len()).rev().find_map(|end| files.get_key_value(&full[..end]));
            let Some((name, file)) = deepest else { continue };
            // A module that shows what its own parts have does not use them by that.
            let is_shown = is_public && name.starts_with(&module.name);
            if !is_shown && *name != module.name.as_slice() {
                imports.entry(*file).or_insert(line);
            }
        }
    }
    for (path, line) in inline_paths(&module.tokens) {
        let found = (0..=path.len()).rev().find_map(|end| files.get_key_value(&path[..end]));
        let Some((name, file)) = found else { continue };
        if *name != module.name.as_slice() {
            imports.entry(*file).or_insert(line);
        }
    }
    imports
}

/// The paths from the root of the crate that code names outside of `use` and of `pub(in …)`.
fn inline_paths(tokens: &[Token]) -> Vec<(Vec<String>, usize)> {
    let (mut paths, mut used) = (Vec::new(), false);
    for (at, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "use" => used = true,
            ";" => used = false,
            "crate" if !used && (at == 0 || tokens[at - 1].text != "in") => {
                let words = tokens[at + 1..].chunks(3);
                let words = words.take_while(|words| {
                    words.len() == 3 && words[0].text == ":" && words[1].text == ":"
                });
                let path: Vec<String> = words.map(|words| words[2].text.clone()).collect();
                if !path.is_empty() {
                    paths.push((path, token.line));
                }
            }
            _ => {}
        }
    }
    paths
}

/// A path from the root of the crate, if it leads into the crate.
fn absolute(
    path: &[&str],
    module: &[String],
    inner: usize,
    files: &BTreeMap<&[String], usize>,
) -> Option<Vec<String>> {
    let supers = path.iter().take_while(|word| **word == "super").count();
    let parents = module.len() - supers.saturating_sub(inner).min(module.len());
    let own = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    match path[0] {
        "crate" => Some(own(&path[1..])),
        "super" => Some([&module[..parents], &own(&path[supers..])].concat()),
        "self" => Some([module, &own(&path[1..])].concat()),
        first => {
            let child = [module, &own(&[first])].concat();
            files.contains_key(child.as_slice()).then(|| [module, &own(path)].concat())
        }
    }
}

/// The circles of a crate's files: of each the files, and the shortest way round.
pub(crate) fn circles(modules: &[Module]) -> Vec<String> {
    let files = modules.iter().zip(0..).map(|(m, at)| (m.name.as_slice(), at)).collect();
    let edges: Vec<BTreeMap<usize, usize>> = modules.iter().map(|m| imports(m, &files)).collect();
    let reach: Vec<BTreeSet<usize>> =
        (0..edges.len()).map(|from| way(&edges, from, usize::MAX).0).collect();
    let (mut seen, mut circles) = (BTreeSet::new(), Vec::new());
    for from in (0..edges.len()).filter(|from| reach[*from].contains(from)) {
        let members = reach[from].iter().copied().filter(|to| reach[*to].contains(&from));
        let members: Vec<usize> = members.collect();
        if !seen.insert(members.clone()) {
            continue;
        }
        let shortest = members.iter().map(|member| way(&edges, *member, *member).1);
        let shortest = shortest.min_by_key(Vec::len).unwrap();
        let path = |at: usize| &modules[at].text.path;
        let step = |pair: &[usize]| {
            format!("  {}:{} imports {}", path(pair[0]), edges[pair[0]][&pair[1]], path(pair[1]))
        };
        let steps: Vec<String> = shortest.windows(2).map(step).collect();
        let names: Vec<&str> = members.iter().map(|member| path(*member).as_str()).collect();
        circles.push(format!("{} files: {}\n{}", names.len(), names.join(" "), steps.join("\n")));
    }
    circles
}

/// All files that imports lead to, and the shortest way to one of them.
fn way(edges: &[BTreeMap<usize, usize>], from: usize, to: usize) -> (BTreeSet<usize>, Vec<usize>) {
    let (mut ways, mut reached, mut found) =
        (VecDeque::from([vec![from]]), BTreeSet::new(), Vec::new());
    while let Some(way) = ways.pop_front() {
        for next in edges[*way.last().unwrap()].keys().filter(|next| reached.insert(**next)) {
            let way = [way.as_slice(), &[*next]].concat();
            if *next == to {
                found.clone_from(&way);
            }
            ways.push_back(way);
        }
    }
    (reached, found)
}
