//! The guide: how to configure, run and observe the daemon, one page per module.
//!
//! The pages are the Markdown files in `shared/guide`, so that they read the same in the repository and here. Each page
//! defines its links to other pages at its end, as paths of files. Here `links.md` comes first and defines the same
//! labels as paths of modules. Markdown uses the first definition of a label, so rustdoc checks these links.
//! `shared/tests/config/guide.rs` checks that both definitions of a label agree and that every YAML example is
//! accepted.

macro_rules! pages {
    ($($name:ident),* $(,)?) => {
        $(
            #[doc = include_str!("../guide/links.md")]
            #[doc = include_str!(concat!("../guide/", stringify!($name), ".md"))]
            pub mod $name {}
        )*
    };
}

pages!(
    balancing,
    configuration,
    embedding,
    limits,
    observability,
    operating,
    quickstart,
    reference,
    reload,
    resilience,
    security
);
