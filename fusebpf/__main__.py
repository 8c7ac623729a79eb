"""The command `fusebpf`, also as `python -m fusebpf`."""

try:
    from fusebpf.cli import main
except KeyboardInterrupt:  # ^C as soon as it was typed: no traceback of imports
    raise SystemExit(130) from None

if __name__ == "__main__":
    main()
