//! stub
#[derive(clap::Args, Debug)]
pub struct Options {}
pub fn run(_: &Options) -> Result<(), crate::app::Failure> {
    Ok(())
}
