"""`python -m cli` is the `graftwork` command, for programs that start it as a child."""

from core.process import die_with_parent

die_with_parent()

if __name__ == "__main__":
    from cli.main import app

    app(prog_name="graftwork")
