"""stub"""
def write_comparison_report(content, *, recipe, command, out):
    out.write_text("stub")
